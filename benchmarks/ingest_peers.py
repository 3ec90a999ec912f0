"""The peers of benchmarks/ingest.py, as programs for their own Python: each reads pictures and prints what it did."""

import os
from pathlib import Path

PEERS = {
    "img2dataset's Resizer": """
import io, warnings
from img2dataset.resizer import Resizer
resizer = Resizer(image_size=112, resize_mode="border", resize_only_if_bigger=KEEPS, skip_reencode=KEEPS)
held = [open(name, "rb").read() for name in files]
begin()
for content in held:
    assert resizer(io.BytesIO(content))[5] is None
end()
""",
    "img2dataset, whole": """
import glob, importlib, pathlib, tempfile, pandas, pyarrow.parquet
main = importlib.import_module("img2dataset.main")
def one_after_another(processes, downloader, rows, *_):
    begin()
    for row in rows:
        assert downloader(row)[:2] == (True, row), row
    end()
main.multiprocessing_distributor = one_after_another
files = files[::SUBSET]
with tempfile.TemporaryDirectory() as made:
    listed = {"url": [pathlib.Path(name).as_uri() for name in files], "identity": [pathlib.Path(name).parent.name for name in files]}
    pandas.DataFrame(listed).to_parquet(made + "/list.parquet")
    main.download(url_list=made + "/list.parquet", input_format="parquet", output_folder=made + "/out", output_format="webdataset",
        image_size=112, resize_only_if_bigger=KEEPS, skip_reencode=KEEPS, processes_count=1, thread_count=1, save_additional_columns=["identity"],
        number_sample_per_shard=max(1, len(files) // 4), enable_wandb=False)
    done = [status for name in glob.glob(made + "/out/*.parquet") for status in pyarrow.parquet.read_table(name)["status"].to_pylist()]
    assert done == ["success"] * len(files), done[:3]
""",
    "cleanvision's find_issues": """
from cleanvision import Imagelab
files = files[::SUBSET]
lab = Imagelab(filepaths=files)
begin()
lab.find_issues(n_jobs=1, verbose=False)
end()
""",
}
_AROUND = """
import glob, json, sys, time
files = sorted(glob.glob(sys.argv[1] + "/*/*.jpg"))
took = []
def begin():
    took[:] = time.perf_counter(), time.process_time()
def end():
    took[:] = time.perf_counter() - took[0], time.process_time() - took[1]
KEEPS, SUBSET = {keeps}, {subset}
{program}
print(json.dumps({{"images": len(files), "wall": took[0], "cpu": took[1]}}))
"""


def command(python: str, root: Path, program: str, *, keeps: bool, subset: int) -> tuple[list[str], dict[str, str]]:
    """A peer's command line and environment, over every `subset`-th picture where it is slow."""
    text = _AROUND.format(keeps=keeps, subset=subset, program=program)
    quiet = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONWARNINGS": "ignore"}
    return [python, "-c", text, str(root / "crawl")], quiet
