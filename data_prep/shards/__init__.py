"""The contract between preparation and training: packed rows in Arrow stream files, and their manifest.

A data folder holds

    manifest.json            written last; without it the folder is not prepared data
    tokenizer/               the tokenizer that made the ids
    train/, validation/, test/      `datasets.load_from_disk` opens each as it stands; a split without rows has none
        data-00000-of-00002.arrow ...   Arrow IPC *stream* files
        dataset_info.json, state.json
        trained_tokens.npy      int32[rows]: the column of that name, of all shards; data of older versions has none
        attention_work.npy      int64[rows]: the sum of the squared lengths of a row's segments, padding being one; data
                                of older versions has none

Columns of a row (T = row_tokens):

    input_ids            fixed_size_list<uint16 | uint32>[T]   padding at the end holds `pad_token_id`
    loss_mask            fixed_size_list<bool>[T]   true: this token is trained; never true for the first token
                         of a segment (nothing precedes it) or for padding
    trained_tokens       int32   number of true values in loss_mask
    piece_tokens         list<int32>   lengths of the segments of documents in the row; their sum is <= T
    piece_source         list<int32>   index into manifest.files of each segment's document
    piece_position       list<int64>   record number of the document in its file, from 0
    piece_start          list<int32>   offset of the segment in its document, in tokens
"""

from data_prep.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    ListedFile,
    Manifest,
    Piece,
    ShardInfo,
    SourceFile,
    check_shards,
    check_size,
    read_manifest,
    template_digest,
    tokenizer_digest,
)
from data_prep.shards.reader import Batch, ShardReader

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "SPLITS",
    "Batch",
    "ListedFile",
    "Manifest",
    "Piece",
    "ShardInfo",
    "ShardReader",
    "SourceFile",
    "check_shards",
    "check_size",
    "read_manifest",
    "template_digest",
    "tokenizer_digest",
]
