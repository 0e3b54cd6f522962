"""Speech recognition, voice activity, and language models."""

from __future__ import annotations

import torch

from runnel import Blocks

from ..bare import bare
from ..case import Built, Case
from ..wrappers import Fixed, FullLengths, Pick


def speechbrain_gru() -> Built:
    from speechbrain.nnet.RNN import GRU

    return Built(GRU(hidden_size=512, input_size=80, num_layers=2), torch.randn(1, 20, 80))


def speechbrain_rnnlm() -> Built:
    from speechbrain.lobes.models.RNNLM import RNNLM

    return Built(RNNLM(1000), torch.randint(0, 1000, (1, 20)))


def speechbrain_crdnn(layer: str, time_pooling: bool = False) -> Built:
    from speechbrain.lobes.models.CRDNN import CRDNN
    from speechbrain.nnet import RNN

    model = CRDNN(
        input_size=40, rnn_class=getattr(RNN, layer), rnn_bidirectional=False, time_pooling=time_pooling
    )
    return Built(model, torch.randn(1, 24, 40))


def speechbrain_rnn(layer: str) -> Built:
    from speechbrain.nnet import RNN

    module = getattr(RNN, layer)
    if layer == "QuasiRNN":
        return Built(module(512, input_shape=(1, 20, 80), num_layers=2), torch.randn(1, 20, 80))
    return Built(module(512, input_shape=(1, 20, 80), num_layers=2), torch.randn(1, 20, 80))


def deepspeech() -> Built:
    from torchaudio.models import DeepSpeech

    return Built(
        DeepSpeech(26, n_hidden=512, n_class=29),
        torch.randn(1, 1, 40, 26),
        {"time_axis": 2, "blocks": Blocks(8, 24)},
        ticks=31,
    )


def wav2letter() -> Built:
    from torchaudio.models import Wav2Letter

    return Built(
        Wav2Letter(num_classes=40, input_type="mfcc", num_features=13),
        torch.randn(1, 13, 60),
        {"time_axis": 2},
    )


def wav2vec2_features() -> Built:
    from torchaudio.models.wav2vec2 import components

    shapes = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
    model = components._get_feature_extractor("layer_norm", shapes, True)
    return Built(Pick(Fixed(model, length=None)), 0.1 * torch.randn(1, 6400))


def rnnt_predictor() -> Built:
    from torchaudio.models import emformer_rnnt_base

    model = emformer_rnnt_base(num_symbols=128).predictor
    return Built(FullLengths(model), torch.randint(0, 128, (1, 20)))


def sincnet() -> Built:
    module = bare("pyannote.audio.models.blocks.sincnet")

    return Built(module.SincNet(stride=10), 0.1 * torch.randn(1, 1, 8000), {"time_axis": 2})


def pyannet() -> Built:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    model = PyanNet()
    model.specifications = Specifications(
        problem=Problem.MULTI_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=5.0,
        classes=["a", "b"],
    )
    model.build()
    blocks = {"time_axis": 2, "blocks": Blocks(8, 24)}
    return Built(model, 0.1 * torch.randn(1, 1, 8000), blocks, ticks=8100)


CASES = (
    Case("SpeechBrain GRU", "speechbrain", speechbrain_gru, "today"),
    Case("SpeechBrain RNNLM", "speechbrain", speechbrain_rnnlm, "today"),
    Case("SpeechBrain CRDNN, LSTM", "speechbrain", lambda: speechbrain_crdnn("LSTM"), "first"),
    Case("SpeechBrain CRDNN, LSTM, pooled", "speechbrain", lambda: speechbrain_crdnn("LSTM", True), "first"),
    Case("SpeechBrain LiGRU", "speechbrain", lambda: speechbrain_rnn("LiGRU"), "second"),
    Case("SpeechBrain SLiGRU", "speechbrain", lambda: speechbrain_rnn("SLiGRU"), "second"),
    Case("SpeechBrain QuasiRNN", "speechbrain", lambda: speechbrain_rnn("QuasiRNN"), "second"),
    Case("DeepSpeech, in blocks", "torchaudio", deepspeech, "today"),
    Case("Wav2Letter", "torchaudio", wav2letter, "first"),
    Case("wav2vec 2.0's features", "torchaudio", wav2vec2_features, "first", "no lengths, the first output"),
    Case("SincNet", "pyannote-audio", sincnet, "never"),
    Case("PyanNet, in blocks", "pyannote-audio", pyannet, "never"),
    Case("RNN-T predictor", "torchaudio", rnnt_predictor, "second", "lengths are full, the first output"),
)
