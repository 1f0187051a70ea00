"""Files of the sets that HALOs names, as they lie on the hub: read by the same converters (rmkit.data.named).

A converter sees the whole file, so HALOs' own rules hold: SHP's score ratio and pairs a prompt, OASST's trees.
"""

from rmkit.data.shapes.shape import Shape, names

SHAPES = (
    Shape(
        name="SHP",
        needs="history, human_ref_A, human_ref_B and labels, as stanfordnlp/SHP has them",
        keys=names("history", "human_ref_A", "human_ref_B", "labels"),
        uses=names("post_id", "c_root_id_A", "c_root_id_B", "score_A", "score_B", "domain"),
        named="shp",
    ),
    Shape(
        name="PKU-SafeRLHF (better_response_id)",
        needs="prompt, response_0, response_1 and better_response_id",
        keys=names("prompt", "response_0", "response_1", "better_response_id"),
        named="safe_rlhf",
    ),
    Shape(
        name="OASST",
        needs="message_id, parent_id, text, role, rank and lang, a message a row",
        keys=names("message_id", "text", "role", "lang"),
        uses=names("parent_id", "rank"),
        named="oasst",
    ),
)
