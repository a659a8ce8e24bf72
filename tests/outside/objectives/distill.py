import torch

from arctic_training import LanguageModelTrainer, Role, SFTDataFactory


class OutsideDistill(LanguageModelTrainer):
    name = "outside_distill"
    data_factory_type = SFTDataFactory
    roles = (Role("model"), Role("teacher", frozen=True, default_to="model", same_vocabulary=True))

    def loss(self, batch):
        labels = batch["labels"][:, 1:] != -100
        student = self.model(**self.inputs(batch)).logits[:, :-1][labels].log_softmax(-1)
        with torch.no_grad():
            teacher = self.engines["teacher"](**self.inputs(batch)).logits[:, :-1][labels].log_softmax(-1)
        return (teacher.exp() * (teacher - student)).sum() / batch["num_items_in_batch"]
