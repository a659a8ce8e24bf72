from arctic_training import (
    TensorTrainer,
    TimeMLPFactory,
    add_noise,
    diffusion_targets,
    draw_timesteps,
    noise_betas,
    noise_levels,
)


class OutsideDiffusion(TensorTrainer):
    """The network predicts the velocity of rows at one of 100 timesteps."""

    name = "outside_diffusion"
    model_factory_type = TimeMLPFactory

    def loss(self, batch):
        rows, draw = batch["rows"], batch["draw"]
        timesteps = draw_timesteps(self.uniform(draw), 100)
        levels = noise_levels(noise_betas("cosine", 100)).to(rows.device)[timesteps]
        noise = self.normal(draw, rows.shape[1:], stream=1)
        output = self.model(self.cast(add_noise(rows, noise, levels)), (timesteps / 100).float())
        errors = output - diffusion_targets("v", rows, noise, levels)
        return errors.square().sum() / batch["num_items_in_batch"]
