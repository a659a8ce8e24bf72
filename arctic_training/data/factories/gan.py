"""Data for adversarial training: new rows for every step of the discriminator."""

from arctic_training.data.factories.tensor import TensorDataFactory


class GANDataFactory(TensorDataFactory):
    """Loads tensors for `gan`: ``micro_batch_size`` rows for each of the discriminator's ``d_steps``."""

    name = "gan"

    @property
    def rows(self) -> int:
        config = self.trainer.config
        return config.micro_batch_size * int(getattr(config, "discriminator_steps", 1))
