from lightning_da.data.base import DataError, DomainPairDataModule, Roles, TensorDomain
from lightning_da.data.digits import Digits
from lightning_da.data.features import FeatureTables
from lightning_da.data.hearts import Hearts
from lightning_da.data.identities import Identities
from lightning_da.data.image_folders import ImageFolders
from lightning_da.data.mask_folders import MaskFolders
from lightning_da.data.reversed import Reversed
from lightning_da.data.sentences import Sentences
from lightning_da.data.shapes import Shapes
from lightning_da.data.speech import SpeechCorpora
from lightning_da.data.streamed_images import StreamedImages
from lightning_da.data.task import Task
from lightning_da.data.trajectories import Trajectories

__all__ = [
    "DataError",
    "Digits",
    "DomainPairDataModule",
    "FeatureTables",
    "Hearts",
    "Identities",
    "ImageFolders",
    "MaskFolders",
    "Reversed",
    "Roles",
    "Sentences",
    "Shapes",
    "SpeechCorpora",
    "StreamedImages",
    "Task",
    "TensorDomain",
    "Trajectories",
]
