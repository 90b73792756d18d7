"""Commands that train: `python -m trainers.pretrain`, `python -m trainers.finetune`."""
