"""Files with odd geometries, written byte by byte, and their grids as other programs see them."""

import nibabel as nib
import numpy as np
import SimpleITK as sitk

FLIP = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
MM = {"mm": 1.0, "micron": 0.001, "meter": 1000.0}


def nifti(path, voxels, affine, *, forms="both", unit="mm", klass=nib.Nifti1Image, endian="<", change=None):
    """Write voxels (x, y, z) with an affine in mm; ``change`` edits the header just before it is stored."""
    header = klass.header_class(endianness=endian)
    image = klass(voxels, None, header)
    image.header.set_data_dtype(voxels.dtype.newbyteorder(endian))
    stored = affine.copy()
    stored[:3] /= MM[unit]
    image.header.set_sform(stored, code=int(forms in ("both", "sform")))
    image.header.set_qform(stored, code=int(forms in ("both", "qform")))
    image.header.set_xyzt_units(unit)
    if change:
        change(image.header)
    image.header.set_slope_inter(1, 0)
    if klass is nib.Nifti1Pair:
        nib.save(image, path)
        return path
    header = image.header
    header["vox_offset"] = header.single_vox_offset
    data = voxels.astype(header.get_data_dtype()).tobytes(order="F")
    content = header.binaryblock + bytes(4) + data
    if path.name.endswith(".gz"):
        import gzip

        content = gzip.compress(content)
    path.write_bytes(content)
    return path


def nrrd(path, voxels, affine, *, unit=None, decimals=17):
    """Write voxels (x, y, z) with an affine in mm as raw NRRD in LPS."""
    stored = np.diag([-1, -1, 1, 1.0]) @ affine
    stored[:3] /= {"um": 0.001, "m": 1000.0}.get(unit, 1.0)
    names = {"int8": "int8", "uint8": "uint8", "float32": "float", "float64": "double"}
    columns = [",".join(f"{v:.{decimals}g}" for v in stored[:3, axis]) for axis in range(4)]
    lines = [
        "NRRD0005", f"type: {names.get(voxels.dtype.name, voxels.dtype.name)}", "dimension: 3", "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, voxels.shape))}", f"space directions: {' '.join(f'({c})' for c in columns[:3])}",
        "endian: little", "encoding: raw", f"space origin: ({columns[3]})",
    ]  # fmt: skip
    lines += [f'space units: "{unit}" "{unit}" "{unit}"'] if unit else []
    path.write_bytes("\n".join([*lines, "", ""]).encode() + voxels.tobytes(order="F"))
    return path


def by_nibabel(path):
    """Shape (x, y, z) and corners in RAS mm, (8, 3), as nibabel sees them."""
    image = nib.load(path)
    affine = np.array(image.affine)
    affine[:3] *= MM.get(image.header.get_xyzt_units()[0], 1.0) if hasattr(image.header, "get_xyzt_units") else 1.0
    shape = (*image.shape, 1, 1)[:3]
    return shape, corners(affine, shape)


def by_itk(path):
    """The same as SimpleITK sees them."""
    image = sitk.ReadImage(str(path))
    shape = image.GetSize()[:3]
    found = [image.TransformContinuousIndexToPhysicalPoint(tuple(map(float, c))) for c in ends(shape)]
    return shape, np.array(found) * [-1, -1, 1]


def ends(shape):
    return np.array([[bit * (n - 1) for bit, n in zip(bits, shape, strict=True)] for bits in np.ndindex(2, 2, 2)])


def corners(affine, shape):
    return ends(shape) @ affine[:3, :3].T + affine[:3, 3]
