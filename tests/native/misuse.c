/* Calls that are wrong: each must give a status and a message, and crash nothing. See tests/test_capi.py. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "fastmtr.h"

static int passed = 0, failed = 0;

static void expect(fmtr_status found, fmtr_status expected, const char* message, int line) {
  if (found == expected && (expected == FMTR_OK || strstr(fmtr_last_error(), message) != NULL)) {
    ++passed;
    return;
  }
  ++failed;
  printf("line %d: %s: %s\n", line, fmtr_status_name(found), fmtr_last_error());
}

#define REFUSED(call, message) expect(call, FMTR_ERROR_ARGUMENT, message, __LINE__)
#define FINE(call) expect(call, FMTR_OK, "", __LINE__)

int main(int argc, char** argv) {
  fmtr_model* model = NULL;
  fmtr_session* session = NULL;
  fmtr_features* features = NULL;
  fmtr_array array = {NULL, NULL, 0, NULL, NULL};
  uint32_t column = 0;
  fmtr_load_options load = {sizeof(fmtr_load_options), "baseline", 0, FMTR_FP32, NULL};
  fmtr_session_options options = {sizeof(fmtr_session_options), 0, 0};
  fmtr_catalogue_data data = {sizeof(fmtr_catalogue_data), 1, NULL, NULL, NULL};
  fmtr_batch batch = {sizeof(fmtr_batch), 1, NULL, NULL, NULL, NULL, NULL, NULL, FMTR_UNKNOWN_ERROR, NULL, 0};
  fmtr_certify_options certify = {sizeof(fmtr_certify_options), 0.1f, 0};
  struct {
    fmtr_session_options known;
    uint64_t later;
  } newer = {{0, 1, 0}, 0};
  uint64_t deleted = 0, version;
  int64_t wanted[2] = {424242, -1};
  int32_t place_of_item[2] = {0, 0};
  float item[2 * 2] = {0.5f, 0.25f, 0, 0};
  int32_t ids[7] = {0}, place[1] = {0};
  float dense[3] = {0}, retrieved[1] = {0}, values[400];
  int64_t keys[100];
  uint64_t offsets[2] = {0, 1}, counts[1], positions[1], rescored[1];
  char* json = NULL;

  if (argc != 2) return 2;
  REFUSED(fmtr_info(NULL), "json is NULL");
  REFUSED(fmtr_model_load(NULL, NULL, &model), "directory is NULL");
  REFUSED(fmtr_model_load(argv[1], NULL, NULL), "model is NULL");
  REFUSED(fmtr_features_load(NULL, &features), "directory is NULL");
  REFUSED(fmtr_features_load(argv[1], NULL), "features is NULL");
  expect(fmtr_features_load(argv[1], &features), FMTR_ERROR_BUNDLE, "features.json", __LINE__);
  REFUSED(fmtr_features_create(NULL, 0, NULL, 0, &features), "json is NULL");
  REFUSED(fmtr_features_create("{}", 2, NULL, 1, &features), "arrays is NULL");
  REFUSED(fmtr_features_create("{}", 2, &array, 1, &features), "an array's dtype is NULL");
  expect(fmtr_features_create("{}", 2, NULL, 0, &features), FMTR_ERROR_BUNDLE, "'version' is missing", __LINE__);
  if (features != NULL || fmtr_features_width(NULL, FMTR_ITEM, FMTR_IDS) != 0) ++failed;
  REFUSED(fmtr_features_describe(NULL, &json), "features is NULL");
  REFUSED(fmtr_features_counts(NULL, &json), "features is NULL");
  REFUSED(fmtr_features_column(NULL, FMTR_ITEM, "x", &column), "features is NULL");
  REFUSED(fmtr_features_encode(NULL, FMTR_ITEM, NULL, 0, NULL, NULL, ids, dense), "features is NULL");
  REFUSED(fmtr_features_encode(NULL, FMTR_ITEM, NULL, 1, NULL, NULL, ids, dense), "values is NULL");
  fmtr_features_free(NULL);
  load.struct_size = 0;
  REFUSED(fmtr_model_load(argv[1], &load, &model), "struct_size is 0, expected sizeof(fmtr_load_options)");
  load.struct_size = sizeof load;
  load.precision = (fmtr_precision)7;
  REFUSED(fmtr_model_load(argv[1], &load, &model), "precision is 7, expected FMTR_FP32, FMTR_FP16 or FMTR_INT8");
  load.precision = FMTR_FP32;
  FINE(fmtr_model_load(argv[1], &load, &model));
  REFUSED(fmtr_model_describe(NULL, &json), "model is NULL");
  FINE(fmtr_model_describe(model, &json));
  if (json == NULL || strstr(json, "\"isa\": \"baseline\"") == NULL) ++failed;
  fmtr_string_free(json);
  fmtr_string_free(NULL);
  if (fmtr_model_width(NULL, FMTR_ITEM, FMTR_IDS) != 0 || fmtr_model_n_items(NULL) != 0 ||
      fmtr_model_n_tasks(NULL) != 0)
    ++failed;

  REFUSED(fmtr_model_keys(model, keys, 99), "keys has room for 99, the catalogue has 100");
  REFUSED(fmtr_model_keys(model, NULL, 100), "keys is NULL");
  FINE(fmtr_model_keys(model, keys, 100));
  REFUSED(fmtr_model_item_output(model, NULL, values, 400), "name is NULL");
  REFUSED(fmtr_model_item_output(model, "item_vector", values, 399), "values has room for 399 numbers, 400 are needed");
  REFUSED(fmtr_model_item_output(model, "item_vector", NULL, 400), "values is NULL");
  FINE(fmtr_model_item_output(model, "item_vector", values, 400));

  REFUSED(fmtr_model_item_output_of(model, "item_vector", NULL, 1, values, 4), "keys is NULL");
  REFUSED(fmtr_model_item_output_of(model, NULL, keys, 1, values, 4), "name is NULL");
  REFUSED(fmtr_model_item_output_of(model, "item_vector", keys, 2, values, 7), "room for 7 numbers, 8 are needed");
  FINE(fmtr_model_item_output_of(model, "item_vector", keys, 2, values, 8));
  FINE(fmtr_model_item_output_of(model, "item_vector", NULL, 0, NULL, 0));
  expect(fmtr_model_item_output_of(model, "item_vector", wanted, 2, values, 8), FMTR_ERROR_SCHEMA,
         "item 424242 (number 0) is not in the catalogue of 100 items", __LINE__);

  REFUSED(fmtr_session_create(NULL, NULL, &session), "model is NULL");
  REFUSED(fmtr_session_create(model, NULL, NULL), "session is NULL");
  newer.known.struct_size = sizeof newer;
  newer.later = 7;
  REFUSED(fmtr_session_create(model, &newer.known, &session), "the caller was built for a later version");
  newer.later = 0;
  FINE(fmtr_session_create(model, &newer.known, &session));
  fmtr_session_free(session);
  FINE(fmtr_session_create(model, &options, &session));

  REFUSED(fmtr_score(NULL, &batch, values, NULL), "session is NULL");
  REFUSED(fmtr_score(session, NULL, values, NULL), "batch is NULL");
  REFUSED(fmtr_score(session, &batch, values, NULL), "request_ids is NULL, but the model reads 7 id columns a request");
  batch.request_ids = ids;
  REFUSED(fmtr_score(session, &batch, values, NULL),
          "request_dense is NULL, but the model reads 3 dense columns a request");
  batch.request_dense = dense;
  batch.items = keys;
  REFUSED(fmtr_score(session, &batch, values, NULL), "offsets is NULL, but items are given");
  batch.offsets = offsets;
  REFUSED(fmtr_score(session, &batch, values, NULL), "candidate_ids is NULL");
  batch.candidate_ids = place;
  batch.candidate_dense = retrieved;
  batch.unknown_items = (fmtr_unknown_items)7;
  REFUSED(fmtr_score(session, &batch, values, NULL), "unknown_items is 7");
  batch.unknown_items = FMTR_UNKNOWN_ERROR;
  FINE(fmtr_score(session, &batch, NULL, NULL));
  FINE(fmtr_score(session, &batch, NULL, values));
  FINE(fmtr_score(session, &batch, values, NULL));
  REFUSED(fmtr_rank(session, &batch, 1, NULL, NULL, NULL, counts), "positions is NULL, but k is 1");
  REFUSED(fmtr_rank(session, &batch, 1, positions, NULL, NULL, NULL), "counts is NULL");
  FINE(fmtr_rank(session, &batch, 0, NULL, NULL, NULL, counts));
  FINE(fmtr_rank_certified(session, &batch, 1, NULL, positions, NULL, NULL, counts, NULL));
  FINE(fmtr_rank_certified(session, &batch, 0, &certify, NULL, NULL, NULL, counts, rescored));
  REFUSED(fmtr_rank_certified(session, &batch, 1, &certify, NULL, NULL, NULL, counts, rescored), "positions is NULL");
  certify.width = -1;
  REFUSED(fmtr_rank_certified(session, &batch, 1, &certify, positions, NULL, NULL, counts, rescored), "width is -1");
  certify.width = 0;
  certify.safety = 0.5f;
  REFUSED(fmtr_rank_certified(session, &batch, 1, &certify, positions, NULL, NULL, counts, rescored), "at least 1");
  certify.struct_size = 8;
  REFUSED(fmtr_rank_certified(session, &batch, 1, &certify, positions, NULL, NULL, counts, rescored), "struct_size");
  REFUSED(fmtr_precision_errors(session, &batch, NULL), "errors is NULL");
  FINE(fmtr_precision_errors(session, &batch, values));
  FINE(fmtr_rank(session, &batch, 1, positions, NULL, NULL, counts));
  REFUSED(fmtr_request_output(session, &batch, "user_vector", values, 3),
          "values has room for 3 numbers, 1 times 4 are needed");
  REFUSED(fmtr_request_output(session, &batch, NULL, values, 4), "name is NULL");
  FINE(fmtr_request_output(session, &batch, "user_vector", values, 4));

  REFUSED(fmtr_model_explain(NULL, &json), "model is NULL");
  REFUSED(fmtr_model_explain(model, NULL), "json is NULL");
  REFUSED(fmtr_profile(NULL, &batch, 0, 1, &json), "session is NULL");
  REFUSED(fmtr_profile(session, NULL, 0, 1, &json), "batch is NULL");
  REFUSED(fmtr_profile(session, &batch, 0, 1, NULL), "json is NULL");
  REFUSED(fmtr_profile(session, &batch, 0, 0, &json), "repeats is 0, expected at least 1");
  FINE(fmtr_profile(session, &batch, UINT64_MAX, 2, &json));
  if (json == NULL || strstr(json, "\"k\": 1") == NULL) ++failed;
  fmtr_string_free(json);

  REFUSED(fmtr_model_set_catalogue(model, NULL), "data is NULL");
  REFUSED(fmtr_model_set_catalogue(model, &data), "keys is NULL, but n_items is 1");
  data.keys = keys;
  REFUSED(fmtr_model_set_catalogue(model, &data), "ids is NULL, but the model reads 1 id columns an item");
  data.n_items = UINT64_MAX;
  REFUSED(fmtr_model_set_catalogue(model, &data), "n_items is 18446744073709551615; at most");
  if (fmtr_model_n_items(model) != 100) ++failed;

  /* Structs of an earlier version end before the members that came later. */
  batch.struct_size = offsetof(fmtr_batch, catalogue_version);
  batch.catalogue_version = 77; /* beyond the caller's struct */
  FINE(fmtr_score(session, &batch, values, NULL));
  --batch.struct_size;
  REFUSED(fmtr_score(session, &batch, values, NULL), "fmtr_batch->struct_size is");
  batch.struct_size = sizeof batch;
  expect(fmtr_score(session, &batch, values, NULL), FMTR_ERROR_STALE,
         "the catalogue is version 1, the call expects version 77", __LINE__);
  batch.catalogue_version = 1;
  FINE(fmtr_score(session, &batch, values, NULL));

  REFUSED(fmtr_model_upsert(model, NULL), "data is NULL");
  REFUSED(fmtr_model_upsert(NULL, &data), "model is NULL");
  REFUSED(fmtr_model_upsert(model, &data), "n_items is 18446744073709551615; at most");
  REFUSED(fmtr_model_delete(NULL, keys, 1, NULL), "model is NULL");
  REFUSED(fmtr_model_delete(model, NULL, 1, NULL), "keys is NULL");
  version = fmtr_model_catalogue_version(model);
  FINE(fmtr_model_delete(model, NULL, 0, &deleted));
  FINE(fmtr_model_delete(model, wanted, 2, &deleted));
  if (deleted != 0 || version != 1 || fmtr_model_catalogue_version(model) != 1) ++failed;
  data.n_items = 1;
  data.keys = wanted;
  data.ids = place_of_item;
  data.dense = item;
  FINE(fmtr_model_upsert(model, &data));
  if (fmtr_model_n_items(model) != 101 || fmtr_model_catalogue_version(model) != 2) ++failed;
  expect(fmtr_score(session, &batch, values, NULL), FMTR_ERROR_STALE, "read its size and keys again", __LINE__);
  FINE(fmtr_model_delete(model, wanted, 2, &deleted));
  if (deleted != 1 || fmtr_model_n_items(model) != 100 || fmtr_model_catalogue_version(model) != 3) ++failed;
  if (fmtr_model_catalogue_version(NULL) != 0) ++failed;
  batch.catalogue_version = 0;

  fmtr_model_free(model); /* the wrong order: the session keeps what it needs */
  FINE(fmtr_score(session, &batch, values, NULL));
  fmtr_session_free(session);
  fmtr_session_free(NULL);
  fmtr_model_free(NULL);
  if (strcmp(fmtr_status_name((fmtr_status)99), "unknown status") != 0) ++failed;
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
