"""The production version of the course's training system: torch's own pieces, concise and exact.

pretrain.py   text, sft.py answers, dpo.py preferences: the three commands; run.py and execute.py: what they share
model.py      a small decoder-only GPT
data.py       text as bytes, windows, loaders, the bigram baseline
optimizer.py  parameter groups and torch.optim
scheduler.py  learning-rate schedules, one step per update
trainer.py    the training loop: accumulation, clipping, mixed precision, validation, checkpoints
state.py      all that a run depends on, out of a trainer and back; sampler.py: the place in the data
distributed.py many processes as one run; meeting.py: how they begin
checkpoint.py files that survive a kill; logger.py: metrics; config.py: YAML and flags

Run: ``python -m training pretrain``, ``python -m training checkpoints list DIRECTORY``, ``python -m training.data``,
``torchrun --nproc_per_node=2 -m training pretrain``.
Importing this package imports nothing else; torch comes with the module that needs it.
"""
