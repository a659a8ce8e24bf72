from torch.nn.functional import cross_entropy, normalize

from arctic_training import LanguageModelTrainer, PairDataFactory, Role, all_gather_with_grad, rank


class OutsideContrastive(LanguageModelTrainer):
    """The negatives of a pair are the other positives of the micro-batch, on all ranks."""

    name = "outside_contrastive"
    data_factory_type = PairDataFactory
    roles = (Role("model", tasks=("encoder",)),)

    def targets(self, batch):
        return int(batch["row_weights"].sum())

    def embed(self, texts):
        states, mask = self.model(**texts).last_hidden_state, texts["attention_mask"][..., None]
        return normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def loss(self, batch):
        anchors, candidates = self.embed(batch["anchor"]), all_gather_with_grad(self.embed(batch["candidates"]))
        own = rank() * len(batch["candidate_ids"]) + batch["row_weights"].new_ones(len(anchors)).cumsum(0).long() - 1
        losses = cross_entropy(20 * anchors @ candidates.T, own, reduction="none")
        return (losses * batch["row_weights"]).sum() / batch["num_items_in_batch"]
