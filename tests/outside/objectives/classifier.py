from torch.nn.functional import cross_entropy

from arctic_training import TensorTrainer


class OutsideClassifier(TensorTrainer):
    name = "outside_classifier"

    def loss(self, batch):
        return cross_entropy(self.model(batch["rows"]), batch["labels"], reduction="sum") / batch["num_items_in_batch"]
