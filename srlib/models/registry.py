"""List the networks by name; each maps (B, channels, X, Y, Z) to (B, 1 or more, X', Y', Z')."""

from srlib.models.mdcsrn import MDCSRN
from srlib.models.recnn import SRCNN3D, ReCNN
from srlib.models.robust import RobustSR
from srlib.models.srgan3d import SRGAN3D
from srlib.models.srresnet2d import SRResNet2D, SRResNet2DRes
from srlib.models.unet3d import UNet3D

MODELS = {
    "mdcsrn": MDCSRN,
    "recnn": ReCNN,
    "srcnn3d": SRCNN3D,
    "robust": RobustSR,
    "srgan3d": SRGAN3D,
    "srresnet2d": SRResNet2D,
    "srresnet2d_res": SRResNet2DRes,
    "unet3d": UNet3D,
}
