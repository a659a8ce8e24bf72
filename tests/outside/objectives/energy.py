import torch

from arctic_training import TensorTrainer, frozen_parameters, normal


class OutsideEnergy(TensorTrainer):
    """Contrastive divergence, with noise of each row's own number for five Langevin steps."""

    name = "outside_energy"

    def loss(self, batch):
        rows = batch["rows"]
        samples = rows
        with frozen_parameters(self.model) as energy, torch.enable_grad():
            for step in range(5):
                samples = samples.detach().requires_grad_()
                (slope,) = torch.autograd.grad(energy(samples).sum(), samples)
                noise = normal(batch["draw"], rows.shape[1], seed=self.config.seed, stream=step)
                samples = samples - 0.005 * slope + 0.1 * noise
        real, drawn = self.model(rows), self.model(samples.detach())
        return (real - drawn + 0.01 * (real.square() + drawn.square())).sum() / batch["num_items_in_batch"]
