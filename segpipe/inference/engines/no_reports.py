"""Stops the usage reports of OpenVINO. Import this before OpenVINO is imported for the first time.

The package `openvino_telemetry` comes with OpenVINO. When `openvino` is imported, it sends a report to a statistics server of its makers
and leaves a client number in the user's home, and asks nobody. OpenVINO does without the package where it cannot be imported: so it is
made impossible to import, for this process. (A program that imports OpenVINO before segpipe has made its own choice.)
"""

import sys

if "openvino" not in sys.modules:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
