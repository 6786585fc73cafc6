"""Networks by name; each maps (batch, channels, X, Y, Z) to (batch, 1, X', Y', Z')."""

from srlib.models.mdcsrn import MDCSRN
from srlib.models.recnn import SRCNN3D, ReCNN
from srlib.models.srgan3d import SRGAN3D
from srlib.models.srresnet2d import SRResNet2D, SRResNet2DRes

MODELS = {
    "mdcsrn": MDCSRN,
    "recnn": ReCNN,
    "srcnn3d": SRCNN3D,
    "srgan3d": SRGAN3D,
    "srresnet2d": SRResNet2D,
    "srresnet2d_res": SRResNet2DRes,
}
