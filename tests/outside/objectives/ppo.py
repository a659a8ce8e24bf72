from arctic_training import Role, RolloutTrainer


class OutsidePPO(RolloutTrainer):
    """A critic of whole completions, which steps once on every rollout."""

    name = "outside_ppo"
    roles = (*RolloutTrainer.roles, Role("critic", tasks=("sequence_classification",), num_labels=1))

    def advantages(self, rollout):
        return rollout["rewards"] - self.moments(rollout["rewards"], rollout)[0]

    def train_step(self, rollout):
        super().train_step(rollout)
        inputs = rollout["inputs"]
        values = self.engines["critic"](input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        errors = (values.flatten() - rollout["rewards"].to(values)).square().nan_to_num()
        self.update("critic", (errors * rollout["weights"]).sum() / rollout["num_items_in_batch"])
