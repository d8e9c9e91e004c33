"""Volumes: NIfTI files and DICOM series, read slice by slice."""
