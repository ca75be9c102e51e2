"""Small DICOM series for tests, written slice by slice, with a fault where one is wanted."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid


def voxels(n=6, rows=8, columns=10, seed=0):
    return np.random.default_rng(seed).integers(0, 2000, (n, rows, columns)).astype(np.uint16)


def write_series(folder: Path, array=None, uid=None, change=None, **attributes) -> Path:
    """Write slices in an order of file names that is not that of their positions.

    ``change(number, dataset)`` alters a slice before it is written; what it returns as False is left out.
    """
    array = voxels() if array is None else array
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid(entropy_srcs=[str(folder)])
    order = np.random.default_rng(1).permutation(len(array))
    for number, plane in enumerate(array):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        sop = generate_uid(entropy_srcs=[str(folder), str(number)])
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = sop
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID = uid, generate_uid(entropy_srcs=["study"])
        slice_.Modality, slice_.SeriesNumber, slice_.SeriesDescription = "CT", 3, "thorax"
        slice_.PatientID, slice_.PatientName = "P1", "Doe^Jane"
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.InstanceNumber, slice_.AcquisitionNumber = number + 1, 1
        slice_.Rows, slice_.Columns = plane.shape
        slice_.PixelSpacing, slice_.ImageOrientationPatient = [0.8, 0.5], [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [-20.0, -30.0, 100.0 + 2.5 * number]
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
        slice_.PixelData = plane.tobytes()
        for name, value in attributes.items():
            setattr(slice_, name, value)
        if change is None or change(number, slice_) is not False:
            pydicom.dcmwrite(folder / f"{order[number]}.dcm", slice_, enforce_file_format=True)
    return folder


def item(**attributes) -> Dataset:
    """An item of a sequence."""
    made = Dataset()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def write_enhanced(path: Path, array=None, change=None, **attributes) -> Path:
    """Write one enhanced MR file: a frame for each plane, 2.5 mm apart, each attribute in its functional group macro.

    ``change(number, frame)`` alters the functional groups of a frame before they are written.
    """
    array = voxels() if array is None else array
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = EnhancedMRImageStorage
    sop = generate_uid(entropy_srcs=[str(path)])
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = sop
    image.SeriesInstanceUID = generate_uid(entropy_srcs=[str(path), "series"])
    image.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    image.Modality, image.SeriesNumber, image.InstanceNumber, image.PatientID = "MR", 3, 1, "P1"
    image.NumberOfFrames, (image.Rows, image.Columns) = len(array), array.shape[1:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.5], SliceThickness=2.5)],
        )
    ]
    frames = []
    for number in range(len(array)):
        frame = item(
            PlanePositionSequence=[item(ImagePositionPatient=[-20.0, -30.0, 100.0 + 2.5 * number])],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")],
        )
        if change is not None:
            change(number, frame)
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    image.PixelData = array.tobytes()
    for name, value in attributes.items():
        setattr(image, name, value)
    pydicom.dcmwrite(path, image, enforce_file_format=True)
    return path


def rewrite(folder: Path, change) -> None:
    """Alter the files of a folder: ``change(number, dataset)`` in the order of InstanceNumber."""
    for path in sorted(folder.iterdir()):
        image = pydicom.dcmread(path)
        change(image.InstanceNumber - 1, image)
        image.save_as(path)


def without_preamble(path: Path, target: Path) -> Path:
    """Write the data set alone, as old devices do: no preamble, no meta information."""
    image = pydicom.dcmread(path)
    del image.file_meta
    image.preamble = None
    image.save_as(target, implicit_vr=True, little_endian=True, enforce_file_format=False)
    path.unlink()
    return target
