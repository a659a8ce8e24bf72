from arctic_training import SFTTrainer, target_samples, token_losses


class OutsideWeighted(SFTTrainer):
    """Each label counts as much as the column ``weight`` of its row says."""

    name = "outside_weighted"
    shares_sequences = True

    def loss(self, batch):
        weights = batch["weight"][target_samples(batch)]
        return (weights * token_losses(self.model, batch)).sum() / batch["num_items_in_batch"]
