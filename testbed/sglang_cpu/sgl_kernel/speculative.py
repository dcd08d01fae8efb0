"""What speculative decoding calls of SGLang's CPU kernels, in plain torch; small and slow.

A tree of drafts has ``n`` nodes for each request, of which the first is the token that was sampled last. Tensors named
``retrive_…`` (the op schema spells it so) have a row for each request: the row of a node in the pass, its first child,
its next sibling, negative where there is none.
"""

from __future__ import annotations

import ctypes

import torch

Tensor = torch.Tensor


def reconstruct_indices_from_tree_mask(
    tree_mask: Tensor,
    sequence_lengths: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    batch_size: int,
    nodes: int,
) -> None:
    """``tree_mask`` has for each node those that it sees, itself and its ancestors; the other tensors are filled."""
    for request, mask in enumerate(tree_mask.view(batch_size, nodes, nodes).tolist()):
        ancestors = [[other for other in range(node) if mask[node][other]] for node in range(nodes)]
        parents = [max(found, default=-1) for found in ancestors]
        for node in range(nodes):
            row = request * nodes + node
            children = (other for other in range(node + 1, nodes) if node in ancestors[other])
            siblings = (other for other in range(node + 1, nodes) if parents[node] == parents[other] >= 0)
            positions.view(-1)[row] = int(sequence_lengths[request]) + len(ancestors[node])
            retrieve_index.view(-1)[row] = row
            retrieve_next_token.view(-1)[row] = next(children, -1)
            retrieve_next_sibling.view(-1)[row] = next(siblings, -1)


def verify_tree_greedy_cpu(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Follow the drafts that the target model would have sampled; the first three tensors are filled."""
    expected = target_predict.reshape(-1)
    for request in range(candidates.shape[0]):
        node, accepted = 0, 0
        last = int(retrive_index[request, 0])
        accept_index[request, 0] = last
        while accepted + 1 < accept_index.shape[1]:
            child = int(retrive_next_token[request, node])
            while child >= 0 and int(candidates[request, child]) != int(expected[last]):
                child = int(retrive_next_sibling[request, child])
            if child < 0:
                break
            predicts[last] = expected[last]
            accepted += 1
            node, last = child, int(retrive_index[request, child])
            accept_index[request, accepted] = last
        predicts[last] = expected[last]
        accept_token_num[request] = accepted


def build_tree_kernel_efficient_cpu(
    parent_list: Tensor,
    selected_index: Tensor,
    sequence_lengths: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    depth: int,
    nodes: int,
    mask_mode: int,
) -> None:
    """The tree of the drafts that were selected, as SGLang's Triton kernel builds it; only the mask of the nodes."""
    assert int(mask_mode) == 1, "the mask of the nodes alone is what SGLang asks for on a CPU"
    batch_size = selected_index.shape[0]
    mask = torch.zeros((batch_size, nodes, nodes), dtype=torch.bool)
    for request in range(batch_size):
        selected = selected_index[request].tolist()
        parents = [-1]
        for index in selected[: nodes - 1]:
            parent = index // topk
            parents.append(0 if parent == 0 else selected.index(int(parent_list[request, parent])) + 1)
        for node, parent in enumerate(parents):
            mask[request, node, node] = True
            if parent >= 0:
                mask[request, node] |= mask[request, parent]
    reconstruct_indices_from_tree_mask(
        mask, sequence_lengths, positions, retrieve_index, retrieve_next_token, retrieve_next_sibling, batch_size, nodes
    )
    tree_mask.view(-1)[: mask.numel()] = mask.view(-1)


def assign_extend_cache_locs_cpu(
    requests: Tensor, request_to_token: Tensor, starts: Tensor, ends: Tensor, locations: Tensor, _: int
) -> None:
    """The places in the cache of the tokens from ``starts`` to ``ends`` of each request, back to back."""
    found = [
        request_to_token[int(request), int(start) : int(end)]
        for request, start, end in zip(requests, starts, ends, strict=True)
    ]
    together = torch.cat(found)
    locations[: len(together)] = together.to(locations.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    requests: Tensor, request_to_token: Tensor, lengths: Tensor, locations: Tensor, width: int, topk: int, steps: int
) -> None:
    ends = lengths[: len(requests)] + topk * steps
    assign_extend_cache_locs_cpu(requests, request_to_token, lengths[: len(requests)], ends, locations, width)


def fill_bonus_tokens_cpu(accept_tokens: Tensor, accept_lengths: Tensor, bonus_tokens: Tensor, stride: int) -> None:
    rows = torch.arange(len(accept_lengths)) * stride + accept_lengths.long() - 1
    bonus_tokens[: len(rows)] = accept_tokens.reshape(-1)[rows].to(bonus_tokens.dtype)


def fill_accept_out_cache_loc_cpu(accept_index: Tensor, locations: Tensor, accepted: Tensor) -> None:
    found = locations[accept_index.reshape(-1)[accept_index.reshape(-1) >= 0].long()]
    accepted[: len(found)] = found.to(accepted.dtype)


def copy_all_layer_kv_cache_cpu(pointers: Tensor, strides: Tensor, to: Tensor, source: Tensor) -> None:
    """Move rows of every buffer; ``strides`` are the bytes of a row."""
    moves = list(zip(to.tolist(), source.tolist(), strict=True))
    for pointer, stride in zip(pointers.tolist(), strides.tolist(), strict=True):
        rows = [ctypes.string_at(pointer + origin * stride, stride) for _, origin in moves]
        for (place, _), row in zip(moves, rows, strict=True):
            ctypes.memmove(pointer + place * stride, row, stride)


def assign_req_to_token_pool_cpu(
    requests: Tensor, request_to_token: Tensor, starts: Tensor, ends: Tensor, locations: Tensor, _: int
) -> None:
    """Give the tokens from ``starts`` to ``ends`` of each request these places, back to back."""
    at = 0
    for request, start, end in zip(requests.tolist(), starts.tolist(), ends.tolist(), strict=True):
        request_to_token[request, start:end] = locations[at : at + end - start].to(request_to_token.dtype)
        at += end - start
