from lightning_da.methods.adaptation import AdaptationModule, DomainBatch
from lightning_da.methods.adda import ADDA
from lightning_da.methods.adversarial_segmentation import AdversarialSegmentation
from lightning_da.methods.amn import AMN
from lightning_da.methods.autoencoder import Autoencoder
from lightning_da.methods.base import TransferModule
from lightning_da.methods.cdan import CDAN
from lightning_da.methods.class_embedding import ClassEmbedding
from lightning_da.methods.classical import Classical
from lightning_da.methods.classifier import Classifier
from lightning_da.methods.clusters import Clusters
from lightning_da.methods.cmd import CMD
from lightning_da.methods.cogan import CoGAN
from lightning_da.methods.conservative import Conservative
from lightning_da.methods.cotrans import CoTrans
from lightning_da.methods.cycle_gan import CycleGAN
from lightning_da.methods.dan import DAN
from lightning_da.methods.dann import DANN
from lightning_da.methods.dap import DAP
from lightning_da.methods.deep_coral import DeepCORAL
from lightning_da.methods.dhn import DHN
from lightning_da.methods.dlid import DLID
from lightning_da.methods.domain_confusion import DomainConfusion
from lightning_da.methods.drcn import DRCN
from lightning_da.methods.dsn import DSN
from lightning_da.methods.dtml import DTML
from lightning_da.methods.fine_tune import FineTune
from lightning_da.methods.gan_classifier import GANClassifier
from lightning_da.methods.jan import JAN
from lightning_da.methods.label_efficient import LabelEfficient
from lightning_da.methods.margin_ensemble import MarginEnsemble
from lightning_da.methods.mcc import MCC
from lightning_da.methods.multi_task import MultiTask
from lightning_da.methods.multimodal import Multimodal
from lightning_da.methods.osbp import OSBP
from lightning_da.methods.pada import PADA
from lightning_da.methods.progressive import Progressive
from lightning_da.methods.pseudo_labels import PseudoLabels
from lightning_da.methods.segmentation import Segmentation
from lightning_da.methods.self_taught import SelfTaught
from lightning_da.methods.shot import SHOT

__all__ = [
    "ADDA",
    "AMN",
    "CDAN",
    "CMD",
    "DAN",
    "DANN",
    "DAP",
    "DHN",
    "DLID",
    "DRCN",
    "DSN",
    "DTML",
    "JAN",
    "MCC",
    "OSBP",
    "PADA",
    "SHOT",
    "AdaptationModule",
    "AdversarialSegmentation",
    "Autoencoder",
    "ClassEmbedding",
    "Classical",
    "Classifier",
    "Clusters",
    "CoGAN",
    "CoTrans",
    "Conservative",
    "CycleGAN",
    "DeepCORAL",
    "DomainBatch",
    "DomainConfusion",
    "FineTune",
    "GANClassifier",
    "LabelEfficient",
    "MarginEnsemble",
    "MultiTask",
    "Multimodal",
    "Progressive",
    "PseudoLabels",
    "Segmentation",
    "SelfTaught",
    "TransferModule",
]
