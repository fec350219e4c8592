"""pose_error: how far the viewing direction of an image is from the one that was asked for [deg]. Computed together with view_consistency."""

from __future__ import annotations

from metrics.camera_metrics import ROW, camera_metrics
from metrics.metric_main import register_metric

register_metric("pose_error{count}", **ROW, unit="deg")(camera_metrics)
