import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from arctic_training import ModelConfig, ModelFactory, TensorTrainer, TrainerConfig, normal


class VAEModelConfig(ModelConfig):
    sizes: list[int]
    """Widths of rows, hidden layer and latent space."""


class VAEModel(ModelFactory):
    name = "outside_vae"
    config_type = VAEModelConfig

    def create_model(self, config):
        rows, hidden, latent = self.config.sizes
        encoder = nn.Sequential(nn.Linear(rows, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, rows))
        return VAE(encoder, decoder)


class VAE(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, rows, noise):
        mean, log_variance = self.encoder(rows).chunk(2, dim=1)
        return mean, log_variance, self.decoder(mean + noise * torch.exp(log_variance / 2))


class VAEConfig(TrainerConfig):
    beta: float = Field(default=1.0, ge=0)
    """Weight of the divergence."""


class OutsideVAE(TensorTrainer):
    name = "outside_vae"
    config_type = VAEConfig
    model_factory_type = VAEModel

    def loss(self, batch):
        rows = batch["rows"].sigmoid()
        noise = normal(batch["draw"], self.config.model.sizes[2], seed=self.config.seed)
        mean, log_variance, logits = self.model(rows, noise)
        reconstruction = binary_cross_entropy_with_logits(logits, rows, reduction="sum")
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (reconstruction + self.config.beta * divergence) / batch["num_items_in_batch"]
