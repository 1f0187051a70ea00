"""What the data sheets promise of the cards that we know."""

DENSE = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200 NVL": 835e12, "H200": 989e12}
"""Dense bf16 operations a second by the data sheets (https://www.nvidia.com/en-us/data-center/h100, h200: those with
sparsity, halved), by the first name that the card's own holds."""


def data_sheet(card: str) -> float | None:
    """Dense bf16 operations a second of a card; None where we do not know it."""
    return next((rate for name, rate in DENSE.items() if name in card), None)
