from arctic_training import LanguageModelTrainer, Role, Seq2SeqDataFactory


class OutsideSeq2Seq(LanguageModelTrainer):
    name = "outside_seq2seq"
    data_factory_type = Seq2SeqDataFactory
    roles = (Role("model", tasks=("seq2seq_lm",)),)

    def loss(self, batch):
        return self.model(**batch).loss
