"""A training loop in plain PyTorch, in which a method takes the place of the loss; 40 % of the labels are drawn anew.

python examples/own_loop.py --epochs 100
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from selfdistill import TrainingClock
from selfdistill.methods import elr


def main(epochs: int) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    wrong = torch.rand(len(y)) < 0.4
    given = torch.where(wrong, torch.randint(0, 10, y.shape), y)
    train = TensorDataset(x[:1300], given[:1300], torch.arange(1300))  # the third column: which row is it?
    loader = DataLoader(train, batch_size=64, shuffle=True)

    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    objective = elr().bind(model, clock=TrainingClock(epochs=epochs, per_epoch=len(loader)))
    for _ in range(epochs):
        for images, labels, ids in loader:
            loss = objective({"x": images, "y": labels, "id": ids})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            objective.update()
    right = (model(x[1300:]).argmax(-1) == y[1300:]).float().mean()
    print(f"{right:.1%} of {len(y) - 1300} rows with right labels; loss {loss:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    main(parser.parse_args().epochs)
