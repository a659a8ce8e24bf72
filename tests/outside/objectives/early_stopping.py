from arctic_training import Callback, ComponentConfig, TensorTrainer


class PatienceConfig(ComponentConfig):
    patience: int = 2
    """Evaluations without a better loss after which the run ends."""


class Patience(Callback):
    name = "outside_patience"
    config_type = PatienceConfig
    best, waited = float("inf"), 0

    def post_evaluate(self, trainer, values):
        self.waited = 0 if values["loss/eval"] < self.best else self.waited + 1
        self.best = min(self.best, values["loss/eval"])
        if self.waited >= self.config.patience:
            trainer.stop(f"the loss has not fallen for {self.waited} evaluations")

    def state_dict(self):
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state):
        self.best, self.waited = state["best"], state["waited"]


class OutsideStopping(TensorTrainer):
    name = "outside_early_stopping"

    def loss(self, batch):
        return (self.model(batch["rows"]) - batch["rows"]).square().sum() / batch["num_items_in_batch"]
