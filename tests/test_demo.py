"""What the demo promises, over three seeds. Slow: ten minutes on two cores."""

import pytest

from lightning_da.main import main
from lightning_da.paths import PROJECT

DIGITS = ["--config", str(PROJECT / "conf" / "data" / "digits.yaml"), "--trainer.enable_progress_bar", "false"]


@pytest.mark.slow
def test_typeset_to_handwritten() -> None:
    table = main(["sweep", *DIGITS, "--seeds", "0", "1", "2"]).set_index("method")
    assert table["seeds"].tolist() == [3] * 6
    found = table["target acc"]
    assert 0.4 < found["source_only"] < 0.7
    assert found["target_only"] >= 0.98
    assert found["deep_coral"] >= found["source_only"] + 0.15
    assert found["dan"] >= 0.82
    assert found["dann"] >= found["source_only"] + 0.15
    assert found["adda"] >= found["source_only"] + 0.15


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_accuracy_to_the_digit() -> None:
    args = [*DIGITS, "--config", str(PROJECT / "conf" / "method" / "dann.yaml"), "--trainer.max_steps", "150"]
    found = []
    for _ in range(2):
        main(["fit", *args])
        found.append(main(["test", *args]).trainer.callback_metrics)
    assert found[0] == found[1]
