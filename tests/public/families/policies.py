"""Policies of robots and games: recurrent layers with a state that the caller carries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..case import Built, Case
from ..wrappers import Pick


def torchrl_layer(layer: str) -> Built:
    from torchrl.modules.tensordict_module import rnn

    return Built(Pick(getattr(rnn, layer)(20, 64, num_layers=2, batch_first=True)), torch.randn(1, 12, 20))


class InTensorDict(nn.Module):
    """torchrl's modules read and write a TensorDict."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module.lstm(x)[0]
        return y


def torchrl_module() -> Built:
    from torchrl.modules import LSTMModule

    module = LSTMModule(input_size=20, hidden_size=64, num_layers=2, in_key="x", out_key="y")
    return Built(InTensorDict(module), torch.randn(1, 12, 20))


class PolicyStep(nn.Module):
    """The recurrent policy's actor spelled out as one step."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.extract, self.lstm = policy.pi_features_extractor, policy.lstm_actor
        self.mlp, self.net = policy.mlp_extractor, policy.action_net

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(self.extract(x)[None], (h, c))
        return self.net(self.mlp.forward_actor(y[0])), h, c


def recurrent_ppo() -> Any:
    import numpy as np
    from gymnasium.spaces import Box
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    space = Box(-1, 1, (24,), np.float32)
    return RecurrentActorCriticPolicy(space, Box(-1, 1, (4,), np.float32), lambda _: 1e-3)


def policy_step() -> Built:
    states = {"h": torch.zeros(1, 1, 256), "c": torch.zeros(1, 1, 256)}
    return Built(PolicyStep(recurrent_ppo()), torch.randn(1, 24), {"time_axis": None, "state": states})


class Policy(nn.Module):
    """The recurrent policy as it is called: a named tuple of states inside, no episode starts."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from sb3_contrib.common.recurrent.type_aliases import RNNStates

        states = RNNStates((h, c), (h, c))
        y, _, _, new = self.policy(x, states, torch.zeros(x.shape[0]), deterministic=True)
        return y, *new.pi


def policy_whole() -> Built:
    states = {"h": torch.zeros(1, 1, 256), "c": torch.zeros(1, 1, 256)}
    return Built(Policy(recurrent_ppo()), torch.randn(1, 24), {"time_axis": None, "state": states})


CASES = (
    Case("RecurrentPPO's actor", "sb3-contrib", policy_step, "today", "spelled out as a step"),
    Case(
        "RecurrentPPO's policy",
        "sb3-contrib",
        policy_whole,
        "second",
        "no episode starts, the actor's states",
    ),
    Case("TorchRL LSTMModule", "torchrl", torchrl_module, "today", "no TensorDict"),
    Case("TorchRL LSTM in Python", "torchrl", lambda: torchrl_layer("LSTM"), "second", "first output"),
    Case("TorchRL GRU in Python", "torchrl", lambda: torchrl_layer("GRU"), "second", "first output"),
)
