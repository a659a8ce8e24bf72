from torch.nn.functional import logsigmoid

from arctic_training import LanguageModelTrainer, PreferenceDataFactory, Role


class OutsideReward(LanguageModelTrainer):
    name = "outside_reward"
    data_factory_type = PreferenceDataFactory
    roles = (Role("model", tasks=("sequence_classification",), num_labels=1),)

    def targets(self, batch):
        return int(batch["pair_weights"].sum())

    def loss(self, batch):
        chosen, rejected = self.model(**self.inputs(batch)).logits.flatten().chunk(2)
        return -(logsigmoid(chosen - rejected) * batch["pair_weights"]).sum() / batch["num_items_in_batch"]
