"""The known networks by name; a new one is one file and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from tomoline.errors import InputError

NETWORKS = {
    "densenet": "tomoline.networks.densenet:DenseNet",
    "dsmnet": "tomoline.networks.dsmnet:DSMNet",
    "encoder_decoder": "tomoline.networks.baselines:EncoderDecoder",
    "hydrapicker": "tomoline.networks.hydrapicker:HydraPicker",
    "msdnet": "tomoline.networks.msdnet:MSDNet",
    "pyconv_unet": "tomoline.networks.pyconv_unet:PyConvUNet",
    "unet": "tomoline.networks.unet:UNet",
    "unet2d": "tomoline.networks.pyconv_unet:ImageUNet",
    "vgg": "tomoline.networks.baselines:VGG",
}


def build(network: str, parameters: dict[str, Any], *, source: str = "card") -> nn.Module:
    """Make an untrained network.

    Raises
    ------
    InputError
        For an unknown network (the known ones are listed) or parameters it does not take.
    """
    if network not in NETWORKS:
        raise InputError(
            source, expected=f"a network out of {', '.join(sorted(NETWORKS))}", found=network,
            remedy="correct `network` in the model's card",
        )  # fmt: skip
    module, name = NETWORKS[network].split(":")
    try:
        made: nn.Module = getattr(import_module(module), name)(**parameters)
    except TypeError as error:
        raise InputError(
            source, expected=f"parameters of {network}", found=str(error),
            remedy="correct `parameters` in the model's card",
        ) from error  # fmt: skip
    return made
