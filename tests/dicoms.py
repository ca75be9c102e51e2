"""Small DICOM series for tests, written slice by slice, with a fault where one is wanted."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


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
