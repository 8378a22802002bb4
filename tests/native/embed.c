/* A service in C99 that embeds fastmtr: reads a batch, scores it, ranks it. See tests/test_capi.py. */
#include <stdio.h>
#include <stdlib.h>

#include "fastmtr.h"

static void must(fmtr_status status) {
  if (status == FMTR_OK) return;
  fprintf(stderr, "%s: %s\n", fmtr_status_name(status), fmtr_last_error());
  exit(1);
}

static double number(FILE* file) {
  double value;
  if (fscanf(file, "%lf", &value) != 1) exit(2);
  return value;
}

int main(int argc, char** argv) {
  fmtr_load_options load = {sizeof(fmtr_load_options), NULL, 0, FMTR_FP32, NULL};
  fmtr_session_options options = {sizeof(fmtr_session_options), 2, 0};
  fmtr_batch batch = {sizeof(fmtr_batch), 0, NULL, NULL, NULL, NULL, NULL, NULL, FMTR_UNKNOWN_ERROR, NULL, 0};
  fmtr_model* model = NULL;
  fmtr_session* session = NULL;
  int32_t ids[2 * 7], place[5];
  float dense[2 * 3], retrieved[5], scores[5 * 2], fused[5];
  uint64_t offsets[3], positions[2 * 2], counts[2], i;
  int64_t items[5];
  FILE* file;

  if (argc != 3 || fmtr_abi_version() != FMTR_ABI_VERSION) return 2;
  must(fmtr_model_load(argv[1], &load, &model));
  must(fmtr_session_create(model, &options, &session));
  if (fmtr_model_width(model, FMTR_REQUEST, FMTR_IDS) != 7 || fmtr_model_width(model, FMTR_CANDIDATE, FMTR_DENSE) != 1)
    return 3;
  printf("fastmtr %s, %d tasks, %d items\n", fmtr_version(), (int)fmtr_model_n_tasks(model),
         (int)fmtr_model_n_items(model));

  file = fopen(argv[2], "r");
  if (file == NULL || number(file) != 2 || number(file) != 5) return 4;
  for (i = 0; i < 2 * 7; ++i) ids[i] = (int32_t)number(file);
  for (i = 0; i < 2 * 3; ++i) dense[i] = (float)number(file);
  for (i = 0; i < 3; ++i) offsets[i] = (uint64_t)number(file);
  for (i = 0; i < 5; ++i) items[i] = (int64_t)number(file);
  for (i = 0; i < 5; ++i) place[i] = (int32_t)number(file);
  for (i = 0; i < 5; ++i) retrieved[i] = (float)number(file);
  fclose(file);

  batch.n_requests = 2;
  batch.request_ids = ids;
  batch.request_dense = dense;
  batch.offsets = offsets;
  batch.items = items;
  batch.candidate_ids = place;
  batch.candidate_dense = retrieved;
  must(fmtr_score(session, &batch, scores, fused));
  for (i = 0; i < 5; ++i) printf("%a %a %a\n", (double)scores[2 * i], (double)scores[2 * i + 1], (double)fused[i]);
  must(fmtr_rank(session, &batch, 2, positions, NULL, NULL, counts));
  for (i = 0; i < 2; ++i) printf("%d %d %d\n", (int)counts[i], (int)positions[2 * i], (int)positions[2 * i + 1]);

  items[0] = 123456789;
  printf("%s: ", fmtr_status_name(fmtr_score(session, &batch, scores, fused)));
  printf("%s\n", fmtr_last_error());
  fmtr_session_free(session);
  fmtr_model_free(model);
  printf("%s: ", fmtr_status_name(fmtr_model_load("/nonexistent", NULL, &model)));
  printf("%s\n", fmtr_last_error());
  return model == NULL ? 0 : 5;
}
