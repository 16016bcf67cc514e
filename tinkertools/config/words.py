"""The words that settings take, and what each method is judged by."""

from typing import Literal

Engine = Literal["auto", "tinker", "local"]
MethodName = Literal["sft", "dpo", "reward", "rl", "distill", "selfplay"]
PresetName = Literal["quick", "standard", "quality"]
PolicyLoss = Literal["importance_sampling", "ppo", "cispo"]
PreferenceLoss = Literal["sigmoid", "ipo"]
Schedule = Literal["linear", "cosine", "constant"]
Overlength = Literal["error", "drop", "truncate"]
TrainOnWhat = Literal[
    "ALL_ASSISTANT_MESSAGES", "LAST_ASSISTANT_MESSAGE", "LAST_ASSISTANT_TURN", "ALL_MESSAGES", "ALL_TOKENS",
    "ALL_USER_AND_SYSTEM_MESSAGES", "CUSTOMIZED",
]  # fmt: skip
IfExists = Literal["ask", "overwrite", "fail", "resume"]
TrackerName = Literal["wandb", "trackio", "tensorboard", "mlflow"]
Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "preference", "sections"]
# What `tt prepare` can have a model write.
Generate = Literal["qa"]

# What a step of training is made of: `batch` says how many.
BATCH_OF: dict[MethodName, str] = {
    "sft": "conversations", "dpo": "pairs", "reward": "pairs", "rl": "prompts", "distill": "prompts",
    "selfplay": "games",
}  # fmt: skip
# What the evaluations of methods are judged by.
JUDGED_OF: dict[MethodName, str] = {
    "sft": "nll", "distill": "nll", "dpo": "loss", "reward": "loss", "rl": "reward", "selfplay": "win_rate",
}  # fmt: skip
# The figure of its own, beside the loss, by which the steps of a method are followed; distillation has it on-policy.
FOLLOWED_BY: dict[MethodName, str] = {
    "dpo": "accuracy", "reward": "accuracy", "rl": "reward", "selfplay": "win_rate", "distill": "reverse_kl",
}  # fmt: skip
