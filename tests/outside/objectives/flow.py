import torch

from arctic_training import TensorTrainer, normal, uniform


class OutsideFlow(TensorTrainer):
    name = "outside_flow"

    def loss(self, batch):
        rows, seed = batch["rows"], self.config.seed
        noise = normal(batch["draw"], rows.shape[1], seed=seed)
        time = uniform(batch["draw"], 1, seed=seed, stream=1).float()
        velocity = self.model(torch.cat([time * rows + (1 - time) * noise, time], dim=1))
        return (velocity - rows + noise).square().sum() / batch["num_items_in_batch"]
