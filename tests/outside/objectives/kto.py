import torch

from arctic_training import LanguageModelTrainer, Role, UnpairedPreferenceDataFactory, token_losses


class OutsideKTO(LanguageModelTrainer):
    """The KL estimate is that of the micro-batch."""

    name = "outside_kto"
    data_factory_type = UnpairedPreferenceDataFactory
    roles = (Role("model"), Role("reference", frozen=True, default_to="model", same_vocabulary=True))

    def targets(self, batch):
        return int(batch["row_weights"].sum())

    def log_ratios(self, batch):
        with torch.no_grad():
            reference = token_losses(self.engines["reference"], batch)
        differences = reference - token_losses(self.model, batch)
        return torch.segment_reduce(differences, "sum", lengths=batch["completion_lengths"], unsafe=True)

    def loss(self, batch):
        with torch.no_grad():
            kl = self.log_ratios(batch["mismatched"]).mean().clamp(min=0)
        sign = torch.where(batch["label"], 1.0, -1.0)
        losses = 1 - torch.sigmoid(0.1 * sign * (self.log_ratios(batch) - kl))
        return (losses * batch["row_weights"]).sum() / batch["num_items_in_batch"]
