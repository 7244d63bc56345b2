"""Ways to get the main job wrong that look right."""

from mutant import Mutant

TOPIC = "10-pretraining-llms"
TESTS = f"tests/{TOPIC}"

MUTANTS = [
    Mutant(
        name="a run's folder is not checked for another run",
        module=f"{TOPIC}/run_folder.py",
        old="if (path / RUN_FILE).exists():",
        new='if (path / "run.jsonl").exists():',
        tests=(f"{TESTS}/test_run_folder.py",),
        symptom="a second run writes over the first",
        finder="the record compared before and after",
    ),
    Mutant(
        name="changed settings pass",
        module=f"{TOPIC}/run_folder.py",
        old="if name in recorded and recorded[name] != value",
        new="if name not in recorded and value is None",
        tests=(f"{TESTS}/test_run_folder.py",),
        symptom="--resume with another seed goes on without a word",
        finder="every changed setting must be named",
    ),
    Mutant(
        name="primed xz counts the training text",
        module=f"{TOPIC}/run_report.py",
        old=" - len(lzma.compress(before, preset=9))",
        new="",
        tests=(f"{TESTS}/test_run_report.py",),
        symptom="the honest rival looks beaten by far",
        finder="a text that the training text holds must be almost free",
    ),
    Mutant(
        name="nats taken for bits",
        module=f"{TOPIC}/run_report.py",
        old="nats_to_bits_per_byte = 1.0 / (np.log(2.0) * bytes_per_token)",
        new="nats_to_bits_per_byte = 1.0 / bytes_per_token",
        tests=(f"{TESTS}/test_run_report.py",),
        symptom="the training curve lies a third below the held-out one",
        finder="a loss worked out by hand",
    ),
    Mutant(
        name="the process group outlives its end",
        module=f"{TOPIC}/process_group.py",
        old='importlib.import_module("torch.distributed.nn.functional")',
        new="pass",
        tests=(f"{TESTS}/test_process_group.py",),
        symptom="one run in twelve under torchrun aborts after its last line",
        finder="the names of the threads that are left",
    ),
    Mutant(
        name="the others do not hear of a failure",
        module=f"{TOPIC}/process_group.py",
        old="parcel[1] = str(error) or type(error).__name__",
        new="parcel[1] = None",
        tests=(f"{TESTS}/test_process_group.py",),
        symptom="under torchrun one process stops and the rest go on with nothing",
        finder="two processes, and a failure in the first",
    ),
    Mutant(
        name="two processes may share a folder",
        module=f"{TOPIC}/run_folder.py",
        old='raise RunError(f"{self.path} is in use by another process") from error',
        new="return",
        tests=(f"{TESTS}/test_run_folder.py",),
        symptom="two resumed runs write the same checkpoints",
        finder="a second process must be kept out",
    ),
]
