"""The production version of the course's training system: torch's own pieces, concise and exact.

model.py      a small decoder-only GPT
data.py       text as bytes, windows, loaders, the bigram baseline
optimizer.py  parameter groups and torch.optim
scheduler.py  learning-rate schedules, one step per update
trainer.py    the training loop: accumulation, clipping, validation

Run: ``python -m training pretrain`` and ``python -m training.data``.
Importing this package imports nothing else; torch comes with the module that needs it.
"""
