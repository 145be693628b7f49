"""Teacher-free distillation: a first training with labels, then (1 - a) CE(y, p) + a T^2 KL(t^T || p^T) afresh."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded


def oracle(run: Recorded, alpha: float = 0.95, temperature: float = 6.0) -> tuple[list[float], nn.Module]:
    teacher, losses = run.model(0), []
    optimizer = run.optimizer(teacher)
    for _, batch in run.batches(0):
        loss = F.cross_entropy(teacher(batch["x"].x), batch["x"].y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    teacher.eval()
    student = run.model(1)
    optimizer = run.optimizer(student)
    for _, batch in run.batches(1):
        x, y = batch["x"].x, batch["x"].y
        with torch.no_grad():
            t = teacher(x)
        z = student(x)
        log_p, log_q = F.log_softmax(z / temperature, 1), F.log_softmax(t / temperature, 1)
        kl = (F.softmax(t / temperature, 1) * (log_q - log_p)).sum(1).mean()
        loss = (1 - alpha) * F.cross_entropy(z, y) + alpha * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, student
