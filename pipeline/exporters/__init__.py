"""Forms in which what was kept is handed on. A new form is one file and one line here."""

from pipeline.exporters import huggingface, imagefolder, parquet, recordio, webdataset
from pipeline.exporters.base import Exporter

EXPORTERS: dict[str, Exporter] = {
    "webdataset": Exporter(webdataset.ABOUT, webdataset.SAMPLE_BYTES, webdataset.write),
    "imagefolder": Exporter(imagefolder.ABOUT, imagefolder.SAMPLE_BYTES, imagefolder.write, is_many_files=True),
    "recordio": Exporter(recordio.ABOUT, recordio.SAMPLE_BYTES, recordio.write, room=2, by_identity=True),
    "parquet": Exporter(parquet.ABOUT, parquet.SAMPLE_BYTES, parquet.write),
    "hf": Exporter(huggingface.ABOUT, huggingface.SAMPLE_BYTES, huggingface.write),
}
