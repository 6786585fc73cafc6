from .mdcsrn import Critic
from .network import Network
from .registry import MODELS
from .srgan3d import Discriminator3D
from .srresnet2d import Discriminator2D
from .unet3d import PlainCritic
from .weights import load_weights, save_weights

__all__ = [
    "MODELS",
    "Critic",
    "Discriminator2D",
    "Discriminator3D",
    "Network",
    "PlainCritic",
    "load_weights",
    "save_weights",
]
