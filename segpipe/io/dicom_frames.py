"""Frames of DICOM images as slices: where each lies, its slope, and what tells it apart from others of the same place.

In an enhanced (multi-frame) image each attribute is taken from the functional group macro that the standard gives it (DICOM PS3.3
C.7.6.16 and the macros of each modality), of the frame or shared. Makers put copies with other values into private sequences.
"""

from math import isfinite
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from segpipe.errors import UnreadableFileError
from segpipe.io.dicom_files import DicomFile, image_type, refusal_of
from segpipe.io.dicom_times import acquired
from segpipe.io.slices import Slice

_MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "DiffusionDirectionality": "MRDiffusionSequence",
    "DiffusionGradientDirectionSequence": "MRDiffusionSequence",
    "InversionTimes": "MRModifierSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "RepetitionTime": "MRTimingAndRelatedParametersSequence",
    "ASLContext": "MRArterialSpinLabelingSequence",
    "VelocityEncodingDirection": "MRVelocityEncodingSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "FrameReferenceDateTime": "FrameContentSequence",
    "DimensionIndexValues": "FrameContentSequence",
    "TemporalPositionTimeOffset": "TemporalPositionSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "NominalPercentageOfRespiratoryPhase": "RespiratorySynchronizationSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "KVP": "CTXRayDetailsSequence",
}
_FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence",
)
# Enhanced images that were converted from classic ones keep the attributes without a macro here (PS3.3 A.70 to A.72).
_CONVERTED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
# What it is called in messages and how: by its classic name, then by that of enhanced images.
_TELLING = {
    "EchoTime": ("EchoTime", "EffectiveEchoTime"),
    "TemporalPositionIdentifier": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "TemporalPositionTimeOffset": ("TemporalPositionTimeOffset",),
    "TriggerTime": ("TriggerTime", "NominalCardiacTriggerDelayTime"),
    "CardiacPhase": ("NominalPercentageOfCardiacPhase",),
    "RespiratoryPhase": ("NominalPercentageOfRespiratoryPhase",),
    "FrameReferenceTime": ("FrameReferenceTime",),
    "AcquisitionNumber": ("AcquisitionNumber", "FrameAcquisitionNumber"),
    "InversionTime": ("InversionTime", "InversionTimes"),
    "FlipAngle": ("FlipAngle",),
    "RepetitionTime": ("RepetitionTime",),
    "KVP": ("KVP",),
    "ASLContext": ("ASLContext",),
    "ConvolutionKernel": ("ConvolutionKernel",),
}
_TEXTS = ("ASLContext", "ConvolutionKernel")
_DIRECTIONS = (
    ("SIEMENS MR HEADER", 0x0019, (0x0E,)),
    ("GEMS_ACQU_01", 0x0019, (0xBB, 0xBC, 0xBD)),
    ("Philips MR Imaging DD 001", 0x2005, (0xB0, 0xB1, 0xB2)),
)
_B_VALUES = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C),
    ("Philips Imaging DD 001", 0x2001, 0x03),
    ("GEMS_PARM_01", 0x0043, 0x39),
)
_COMPONENTS = {
    "M": "magnitude", "MAGNITUDE": "magnitude", "P": "phase", "PHASE": "phase", "PHASE MAP": "phase",
    "R": "real", "REAL": "real", "I": "imaginary", "IMAGINARY": "imaginary",
}  # fmt: skip
_GE_COMPONENTS = ("magnitude", "phase", "real", "imaginary")
# Dimensions along which a volume extends.
_WITHIN = (
    "StackID",
    "InStackPositionNumber",
    "ImagePositionPatient",
    "PlanePositionSequence",
    "ImageOrientationPatient",
)


def slices_of(file: DicomFile) -> list[Slice]:
    """Return one slice of a classic image, one a frame of an enhanced one.

    Raises
    ------
    UnreadableFileError
        If it is no grey-value image of a volume, or an attribute cannot be read.
    """
    try:
        return _slices_of(file)
    except (UnreadableFileError, MemoryError):
        raise
    except Exception as error:
        # pydicom converts a value when it is asked for.
        raise UnreadableFileError(
            f"{file.path.name}: an attribute cannot be read ({error}); repair or export it again"
        ) from error


def _slices_of(file: DicomFile) -> list[Slice]:
    header, name = file.header, file.path.name
    if problem := refusal_of(header):
        raise UnreadableFileError(f"{name}: {problem}")
    n_frames = int(header.get("NumberOfFrames") or 1)
    if "PerFrameFunctionalGroupsSequence" not in header:
        if n_frames > 1:
            raise UnreadableFileError(
                f"{name}: {n_frames} frames without positions (no functional groups); not a volume"
            )
        return [_slice(file, _Classic(header), 0)]
    shared = header.SharedFunctionalGroupsSequence[0] if header.get("SharedFunctionalGroupsSequence") else Dataset()
    groups = header.PerFrameFunctionalGroupsSequence
    if len(groups) != n_frames:
        raise UnreadableFileError(
            f"{name}: NumberOfFrames is {n_frames}, but {len(groups)} frames are described "
            "(PerFrameFunctionalGroupsSequence); export it again"
        )
    pointers = [keyword_for_tag(d.DimensionIndexPointer) for d in header.get("DimensionIndexSequence") or ()]
    return [_slice(file, _Enhanced(header, group, shared, pointers), number) for number, group in enumerate(groups)]


class _Classic:
    """Attributes of an image of one frame: all of them stand in it."""

    def __init__(self, header: Dataset) -> None:
        self.private = header
        self._header = header

    def get(self, name: str) -> Any:
        """Return an attribute's value, or None."""
        value = self._header.get(name)
        return None if value == "" else value

    def image_type(self) -> tuple[str, ...]:
        """Return the values of ImageType."""
        return image_type(self._header)

    def direction(self) -> Any:
        """Return the direction of the diffusion gradient, or None: the standard's, or the maker's."""
        stated = self.get("DiffusionGradientOrientation")
        for creator, group, elements in () if stated is not None else _DIRECTIONS:
            found = [_private(self._header, creator, group, e) for e in elements]
            if None not in found:
                return found[0] if len(found) == 1 else found
        return stated

    def dimensions(self) -> dict[str, float]:
        """Return nothing: a classic image numbers no dimensions."""
        return {}


class _Enhanced:
    """Attributes of one frame: each from its own macro, of the frame or shared."""

    def __init__(self, header: Dataset, frame: Dataset, shared: Dataset, pointers: list[str]) -> None:
        self.private = frame
        self._header, self._pointers = header, pointers
        self._groups = [(group, {keyword_for_tag(tag) for tag in group.keys()}) for group in (frame, shared)]  # noqa: SIM118

    def get(self, name: str) -> Any:
        """Return an attribute's value, or None."""
        macro = _MACROS.get(name, "")
        # Where a frame lies stands in its macro alone; other attributes may belong to the image as a whole.
        is_place = macro.startswith(("Plane", "PixelMeasures"))
        for place in [macro] if is_place else [macro, *_CONVERTED]:
            value = self._in(place, name) if place else None
            if value is not None:
                return value
        value = None if is_place else self._header.get(name)
        return None if value == "" else value

    def image_type(self) -> tuple[str, ...]:
        """Return the frame's type, or that of the image."""
        types = next((t for macro in _FRAME_TYPES if (t := self._in(macro, "FrameType")) is not None), None)
        component = self._in("MRImageFrameTypeSequence", "ComplexImageComponent")
        of_image = (
            tuple(str(t).upper() for t in types) if types and not isinstance(types, str) else image_type(self._header)
        )
        return (*of_image, str(component)) if component and component != "MIXED" else of_image

    def direction(self) -> Any:
        """Return the direction of the diffusion gradient, or None."""
        found = self.get("DiffusionGradientDirectionSequence")
        return found[0].get("DiffusionGradientOrientation") if found else None

    def dimensions(self) -> dict[str, float]:
        """Return the frame's number along each dimension but those of space."""
        values = self._in("FrameContentSequence", "DimensionIndexValues")
        numbers = [] if values is None else [values] if isinstance(values, int) else list(values)
        if len(numbers) != len(self._pointers):
            return {}
        return {p: float(n) for p, n in zip(self._pointers, numbers, strict=True) if p and p not in _WITHIN}

    def _in(self, macro: str, name: str) -> Any:
        for group, macros in self._groups:
            # To ask pydicom for what is not there takes long, with thousands of frames.
            items = group.get(macro) if macro in macros else None
            value = items[0].get(name) if items else None
            if value not in (None, ""):
                return value
        return None


def _slice(file: DicomFile, plane: _Classic | _Enhanced, frame: int) -> Slice:
    header = file.header
    spacing = _numbers(plane, "PixelSpacing", 2)
    position = _numbers(plane, "ImagePositionPatient", 3)
    distance, number = plane.get("SpacingBetweenSlices"), _number(_told(_Classic(header), "InstanceNumber"))
    slope, intercept = plane.get("RescaleSlope"), plane.get("RescaleIntercept")
    return Slice(
        file=file.path,
        instance_uid=str(header.get("SOPInstanceUID", "")),
        class_uid=str(header.get("SOPClassUID", "")),
        number=None if number is None else int(number) + frame,
        position=(position[0], position[1], position[2]) if position else None,
        orientation=_numbers(plane, "ImageOrientationPatient", 6),
        pixel_spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        shape=(int(header.Rows), int(header.Columns)),
        frame=frame,
        image_type=plane.image_type(),
        slice_distance_mm=float(distance) if distance is not None and float(distance) > 0 else None,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        kinds=_kinds(plane),
    )


def _kinds(plane: _Classic | _Enhanced) -> dict[str, Any]:
    """What tells apart images of one place: numbers, vectors of numbers, and texts."""
    types = plane.image_type()
    kinds: dict[str, Any] = {"component": _component(plane, types), "b-value": _b_value(plane)}
    kinds["gradient direction"] = _vector(plane.direction())
    for name, keywords in _TELLING.items():
        value = next((v for k in keywords if (v := _told(plane, k)) is not None), None)
        kinds[name] = _text(value) if name in _TEXTS else _number(value)
    kinds |= acquired(lambda name: _told(plane, name))
    kinds["ImageType"] = types or None
    kinds |= {f"dimension {name}": number for name, number in plane.dimensions().items()}
    return {name: value for name, value in kinds.items() if value is not None}


def _component(plane: _Classic | _Enhanced, types: tuple[str, ...]) -> str | None:
    """Which part of a complex image it is, where that is stated once."""
    # The first two say that the image is original and primary, or derived.
    named = {_COMPONENTS[t.upper()] for t in types[2:] if t.upper() in _COMPONENTS}
    if len(named) == 1:
        return named.pop()
    ge = _private(plane.private, "GEMS_PARM_01", 0x0043, 0x2F)
    return _GE_COMPONENTS[int(ge)] if isinstance(ge, int) and 0 <= ge < len(_GE_COMPONENTS) else None


def _b_value(plane: _Classic | _Enhanced) -> float | None:
    """Diffusion weighting in s/mm², where the standard or the maker of the scanner has put it."""
    value = plane.get("DiffusionBValue")
    if value is None and isinstance(plane, _Classic):
        found = (_private(plane.private, *place) for place in _B_VALUES)
        value = next((v for v in found if v not in (None, "")), None)
    # Bytes have lost their type on the way.
    if value is None or isinstance(value, bytes):
        return None
    first = value if isinstance(value, str | int | float) else value[0]
    # GE adds a thousand million to say how it was measured.
    return float(first) % 1e9


def _private(dataset: Dataset, creator: str, group: int, element: int) -> Any:
    try:
        return dataset.get_private_item(group, element, creator).value
    except KeyError:
        return None


def _told(plane: _Classic | _Enhanced, name: str) -> Any:
    """Return an attribute that a volume can do without; None where it cannot be read."""
    try:
        return plane.get(name)
    except (ValueError, TypeError, OverflowError):
        return None


def _number(value: Any) -> float | None:
    """Return a value, or its first, as a number; None where it is none."""
    if value is None or isinstance(value, bytes) or (not isinstance(value, str | int | float) and not len(value)):
        return None
    first = value if isinstance(value, str | int | float) else value[0]
    try:
        number = float(str(first))
    except ValueError:
        return None
    return number if isfinite(number) else None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) else " ".join(str(v) for v in value)


def _vector(value: Any) -> tuple[float, ...] | None:
    return None if value is None or isinstance(value, str | bytes | float | int) else tuple(float(v) for v in value)


def _numbers(plane: _Classic | _Enhanced, name: str, n: int) -> tuple[float, ...] | None:
    value = _vector(plane.get(name))
    return value if value and len(value) == n else None
