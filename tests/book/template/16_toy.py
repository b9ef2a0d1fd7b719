# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Toy: the smallest chapter
#
# | | |
# |:--|:--|
# | Paper | Nobody, *A Network for Red and Blue* |
# | Claim | More channels tell red from blue better. |
# | You need | [Chapter 1](01_vgg): convolutions. |
# | Words, letters | [Glossary](../pages/glossary.md), [notation](../pages/notation.md) |

# %% tags=["model"]
import time
from functools import partial

import torch
from torch import nn

from helpers import plot, train
from helpers.claims import Claims
from helpers.data import Dataset, Provenance, Split
from helpers.headline import headline
from helpers.study import Study
from helpers.table import Table
from helpers.variants import Variant, Variants, counted
from helpers.weights import Weights

# %%
started = time.perf_counter()

# %% [markdown]
# ## The network


# %% tags=["model"]
class Toy(nn.Module):
    """Images (N, 3, H, W) to logits (N, 12)."""

    def __init__(self, width=4):
        super().__init__()
        self.features = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 12)

    def forward(self, x):
        return self.head(self.features(x).relu().mean((2, 3)))


def red_and_blue():
    """128 noisy pictures of 8 px, brighter in red or in blue."""
    draws = torch.Generator().manual_seed(0)
    targets = torch.arange(128) % 2
    images = torch.randint(0, 100, (128, 3, 8, 8), generator=draws, dtype=torch.uint8)
    images[torch.arange(128), 2 * targets] += 80
    split = Split(images, targets)
    return Dataset(split, split, ("red", "blue"), Provenance("toy pictures", True, "128 of 8 px"))


def train_arm(data, *, seed, width):
    """One training of the study."""
    train.set_seed(seed)
    history = train.fit(Toy(width), data, epochs=1, batch_size=32, seed=seed)
    return {"test_loss": history.last("test_loss")}


def build():
    return Toy()


def learn(model, data):
    history = train.fit(model, data, epochs=1, batch_size=32)
    return {"test_accuracy": history.last("test_accuracy")}


def logit(outputs, labels):
    return outputs[torch.arange(len(labels)), labels]


# %% tags=["model"]
ARMS = {"narrow": {"width": 2}, "wide": {"width": 8}}
STUDY = Study("16_toy", run=train_arm, arms=ARMS, data=red_and_blue, seeds=(0, 1))
CLAIMS = Claims(
    STUDY,
    "test_loss",
    "test loss",
    matters=0.01,
    about="Two channels against eight.",
    main={"eight channels beat two": ("wide", "narrow", "Table 0: by far")},
)
NETWORKS = Variants(
    "16_toy",
    "Pictures of 8x8 pixels.",
    [Variant(f"width {width}", partial(Toy, width), (3, 8, 8)) for width in (4, 16)],
)
TRAINED = Weights("16_toy", "placed", build, learn, red_and_blue, "Toy network", "features", logit)

# %%
Table(counted(NETWORKS))

# %%
CLAIMS.table()

# %%
plot.images(red_and_blue().test.images[:4], alt="Two red and two blue pictures.", caption="Red and blue.")

# %% [markdown]
# ## Recap

# %%
headline("toy", red_and_blue().provenance)

# %%
print(f"This chapter's computations took {(time.perf_counter() - started) / 60:.1f} minutes.")
