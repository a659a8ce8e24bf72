from arctic_training import LanguageModelTrainer, Role, Seq2SeqDataFactory, token_losses


class OutsideSeq2Seq(LanguageModelTrainer):
    name = "outside_seq2seq"
    data_factory_type = Seq2SeqDataFactory
    roles = (Role("model", tasks=("seq2seq_lm",)),)

    def loss(self, batch):
        return token_losses(self.model, batch, reduction="sum") / batch["num_items_in_batch"]
