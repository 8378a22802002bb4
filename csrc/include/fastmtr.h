/* fastmtr: the C ABI (C99). Score multi-task ranking models inside a service.
 *
 * Model: loaded from a bundle directory, immutable, shared by threads. Its catalogue (item inputs and what was computed
 * from them) can be changed while sessions run: a call sees one version of it from beginning to end.
 * Session: one thread's workspace; never use one session from two threads at once.
 *
 * Every function returns a status; fmtr_last_error() has this thread's message for the last status that was not FMTR_OK.
 * Option structs begin with struct_size = sizeof(the struct): later versions may append members, for which zero means what
 * it was without them. Set a struct to zeros before its members.
 * Matrices are row-major and contiguous. Nothing here starts a thread unless `threads` > 1 was asked for.
 */
#ifndef FASTMTR_H
#define FASTMTR_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define FMTR_API __declspec(dllexport)
#else
#define FMTR_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FMTR_ABI_VERSION 1

typedef enum fmtr_status {
  FMTR_OK = 0,
  FMTR_ERROR_ARGUMENT = 1, /* a call is malformed: null pointer, bad size, unknown name          (ValueError)    */
  FMTR_ERROR_SCHEMA = 2,   /* an input does not fit the model: id out of range, NaN, unknown item (SchemaError)   */
  FMTR_ERROR_BUNDLE = 3,   /* a bundle is missing, damaged, or of another version                (BundleError)   */
  FMTR_ERROR_BACKEND = 4,  /* a back end is not there or failed                                  (BackendError)  */
  FMTR_ERROR_MEMORY = 5,   /* out of memory                                                      (MemoryError)   */
  FMTR_ERROR_INTERNAL = 6, /* a bug in fastmtr                                                   (FastMTRError)  */
  FMTR_ERROR_STALE = 7     /* the catalogue is no longer the version that the call expects       (StaleError)    */
} fmtr_status;

typedef struct fmtr_model fmtr_model;
typedef struct fmtr_session fmtr_session;

typedef enum fmtr_domain { FMTR_REQUEST = 0, FMTR_ITEM = 1, FMTR_CANDIDATE = 2 } fmtr_domain;
typedef enum fmtr_kind { FMTR_IDS = 0, FMTR_DENSE = 1 } fmtr_kind;

/* What to do with a candidate key that the catalogue does not have. */
typedef enum fmtr_unknown_items {
  FMTR_UNKNOWN_ERROR = 0, /* FMTR_ERROR_SCHEMA, nothing is scored          */
  FMTR_UNKNOWN_SKIP = 1   /* its scores are NaN and it is never ranked     */
} fmtr_unknown_items;

FMTR_API uint32_t fmtr_abi_version(void);
FMTR_API const char* fmtr_version(void);    /* "0.1.0" */
FMTR_API const char* fmtr_last_error(void); /* this thread's; "" if none; valid until this thread's next call */
FMTR_API const char* fmtr_status_name(fmtr_status status);

/* JSON text: version, ABI, back ends and instruction sets with the reason where one is not used. Free with fmtr_string_free. */
FMTR_API fmtr_status fmtr_info(char** json);
FMTR_API void fmtr_string_free(char* text);

/* ---- model -------------------------------------------------------------------------------------------------------- */

/* What products are computed in. Weights on disk are fp32 whatever is chosen here. */
typedef enum fmtr_precision {
  FMTR_FP32 = 0,
  FMTR_FP16 = 1, /* weights stored in half precision: half the memory; arithmetic in fp32 */
  FMTR_INT8 = 2, /* candidates: weights and activations in 8 bits where that is quicker; sums in 32 bits */
  FMTR_TF32 = 3, /* a GPU's tensor cores, sums in fp32: 11 bits of each factor */
  FMTR_BF16 = 4  /* the same with 8 bits. On a GPU FMTR_FP16 is its tensor cores, too: factors in half precision */
} fmtr_precision;

typedef struct fmtr_load_options {
  size_t struct_size;
  const char* isa; /* NULL: the best this CPU has (or FASTMTR_FORCE_ISA); else "baseline", "avx2", "avx512", "avx512_vnni", "neon" */
  int32_t without_catalogue; /* 1: do not read catalogue.safetensors even if it is there */
  fmtr_precision precision;
  const char* device; /* NULL or "cpu"; "cuda": an NVIDIA GPU, FMTR_ERROR_BACKEND with the reason where there is none to use; "auto": that or else the CPU */
} fmtr_load_options;

FMTR_API fmtr_status fmtr_model_load(const char* directory, const fmtr_load_options* options, fmtr_model** model);
FMTR_API void fmtr_model_free(fmtr_model* model); /* NULL is fine; its sessions must be freed first */

/* JSON text: inputs with their packed columns, widths a domain, tasks, outputs, fusion, isa, checksums of plan and weights as
 * the manifest tells them, version and size of the catalogue, memory in bytes. */
FMTR_API fmtr_status fmtr_model_describe(const fmtr_model* model, char** json);

/* JSON text: each step of the plan with its operator, domain, precision, and for one row of its domain FLOPs and bytes: read
 * from rows of tables, of weights (read once a tile of rows), kept for each item; FLOPs of the tasks' scores a domain. */
FMTR_API fmtr_status fmtr_model_explain(const fmtr_model* model, char** json);

/* Columns of the packed matrix of that domain and kind. */
FMTR_API uint64_t fmtr_model_width(const fmtr_model* model, fmtr_domain domain, fmtr_kind kind);
FMTR_API uint64_t fmtr_model_n_tasks(const fmtr_model* model);
FMTR_API uint64_t fmtr_model_n_items(const fmtr_model* model); /* 0 without a catalogue */

typedef struct fmtr_catalogue_data {
  size_t struct_size;
  uint64_t n_items;
  const int64_t* keys; /* [n_items], unique                        */
  const int32_t* ids;  /* [n_items, width(FMTR_ITEM, FMTR_IDS)]    */
  const float* dense;  /* [n_items, width(FMTR_ITEM, FMTR_DENSE)]  */
} fmtr_catalogue_data;

/* The catalogue changes by versions: each of the three functions below makes the next one, or fails and changes nothing.
 * They copy what they are given, compute the item-domain part of the given items alone, and take turns; sessions go on
 * meanwhile, without a lock, and see the new version at their next call. An item's row is its place in the catalogue's order:
 * a replaced item keeps its row, new ones come last in the order given, after a delete the others close up.
 * A model's weights never change, and what was computed with them is read by this model alone: for new weights load another
 * model and give it its items. */

/* These items in place of all there are. */
FMTR_API fmtr_status fmtr_model_set_catalogue(fmtr_model* model, const fmtr_catalogue_data* data);
/* Replaces the items whose keys are there, and adds the others. */
FMTR_API fmtr_status fmtr_model_upsert(fmtr_model* model, const fmtr_catalogue_data* data);
/* Keys that are not there are passed over; *deleted (NULL if not wanted) is how many were. None: no new version. */
FMTR_API fmtr_status fmtr_model_delete(fmtr_model* model, const int64_t* keys, uint64_t n, uint64_t* deleted);

/* 0 without a catalogue; it only grows. What other functions said of rows holds where it is the same before and after. */
FMTR_API uint64_t fmtr_model_catalogue_version(const fmtr_model* model);

/* Keys of the catalogue in row order into keys[n_items]. */
FMTR_API fmtr_status fmtr_model_keys(const fmtr_model* model, int64_t* keys, uint64_t capacity);

/* An item-domain output (say "item_vector") for the whole catalogue, in row order: values[n_items, width]. */
FMTR_API fmtr_status fmtr_model_item_output(const fmtr_model* model, const char* name, float* values, uint64_t capacity);

/* The same of n items by their keys, each of which must be there: values[n, width]. */
FMTR_API fmtr_status fmtr_model_item_output_of(const fmtr_model* model, const char* name, const int64_t* keys, uint64_t n,
                                               float* values, uint64_t capacity);

/* ---- session ------------------------------------------------------------------------------------------------------ */

typedef struct fmtr_session_options {
  size_t struct_size;
  uint32_t threads; /* 0 or 1: the caller's thread alone; more: a pool of threads - 1 helpers, owned by the session */
  uint32_t tile;    /* candidates a tile, and at most so many requests; 0: chosen for the cache */
} fmtr_session_options;

FMTR_API fmtr_status fmtr_session_create(fmtr_model* model, const fmtr_session_options* options, fmtr_session** session);
FMTR_API void fmtr_session_free(fmtr_session* session);

/* R requests, each with its own candidates. What it points to must not change during a call. With items NULL the size and
 * order of the answer are those of the catalogue: where another thread may change it, give the version that the size was read
 * from, or a larger catalogue would be written beyond the end of the answer. */
typedef struct fmtr_batch {
  size_t struct_size;
  uint64_t n_requests;
  const int32_t* request_ids;   /* [R, width(FMTR_REQUEST, FMTR_IDS)]   */
  const float* request_dense;   /* [R, width(FMTR_REQUEST, FMTR_DENSE)] */
  const uint64_t* offsets;      /* [R + 1], ascending from 0: candidates offsets[r] .. offsets[r+1] belong to request r */
  const int64_t* items;         /* [offsets[R]] catalogue keys; NULL: every request scores the whole catalogue in row order, offsets are not read */
  const int32_t* candidate_ids; /* [offsets[R], width(FMTR_CANDIDATE, FMTR_IDS)], NULL if that width is 0   */
  const float* candidate_dense; /* [offsets[R], width(FMTR_CANDIDATE, FMTR_DENSE)], NULL if that width is 0 */
  fmtr_unknown_items unknown_items;
  const float* fusion_weights;  /* [n fused tasks] in place of the bundle's; NULL: the bundle's */
  uint64_t catalogue_version;   /* FMTR_ERROR_STALE if the catalogue is another version; 0: any will do */
} fmtr_batch;

/* scores [total, n_tasks] and fused [total]; either may be NULL. total = offsets[R] (or R * n_items). */
FMTR_API fmtr_status fmtr_score(fmtr_session* session, const fmtr_batch* batch, float* scores, float* fused);

/* The k best of each request by fused score. positions [R, k]: index into that request's candidates, UINT64_MAX beyond
 * counts[r]; fused [R, k] and scores [R, k, n_tasks], NaN there, each may be NULL; counts [R]. */
FMTR_API fmtr_status fmtr_rank(fmtr_session* session, const fmtr_batch* batch, uint64_t k, uint64_t* positions,
                               float* fused, float* scores, uint64_t* counts);

/* As fmtr_rank, but the list, its order and its scores are those of fp32 from a model loaded with int8 (or fp32; any other
 * precision keeps no fp32 weights and is refused), provided that no candidate's fused score in fp32 is further from that of the model's precision than a width: absolute for
 * a sum as fusion, of the logarithms for a product. Only candidates within the width of the list's end are scored in fp32.
 * The width is what the caller measured (with fmtr_precision_errors), and is never less than `safety` times the largest
 * error among the candidates scored in fp32; where that enlarges it, more are scored, all if need be. */
typedef struct fmtr_certify_options {
  size_t struct_size;
  float width;  /* 0: only what this request shows  */
  float safety; /* 0: 2                             */
} fmtr_certify_options;

/* rescored [R], may be NULL: candidates of the request that were scored in fp32. options NULL: all zeros. */
FMTR_API fmtr_status fmtr_rank_certified(fmtr_session* session, const fmtr_batch* batch, uint64_t k,
                                         const fmtr_certify_options* options, uint64_t* positions, float* fused,
                                         float* scores, uint64_t* counts, uint64_t* rescored);

/* errors [total]: of each candidate's fused score at the model's precision from that in fp32, absolute or of logarithms as
 * fmtr_rank_certified has them. */
FMTR_API fmtr_status fmtr_precision_errors(fmtr_session* session, const fmtr_batch* batch, float* errors);

/* Where the time of fmtr_rank(k), or with k = 0 of fmtr_score, goes: runs the batch once, then `repeats` times with a clock read
 * around each step of the plan. JSON text: nanoseconds in all, by phase (checks, lookup of keys, request part, candidate
 * part, fusion, top_k), and for each step calls, rows, FLOPs and nanoseconds; sums over repeats and threads. Other calls read
 * no clock. */
FMTR_API fmtr_status fmtr_profile(fmtr_session* session, const fmtr_batch* batch, uint64_t k, uint64_t repeats, char** json);

/* A request-domain output (say "user_vector") for R requests: values[R, width]. items, offsets and candidates are not read. */
FMTR_API fmtr_status fmtr_request_output(fmtr_session* session, const fmtr_batch* batch, const char* name, float* values,
                                         uint64_t capacity);

/* ---- arrays in the device's memory ---------------------------------------------------------------------------------- */

/* Of a model whose device is not the CPU. */
FMTR_API fmtr_status fmtr_device_allocate(const fmtr_model* model, uint64_t bytes, void** memory);
FMTR_API void fmtr_device_free(const fmtr_model* model, void* memory);
FMTR_API fmtr_status fmtr_device_copy_out(const fmtr_model* model, void* to, const void* from, uint64_t bytes);

typedef struct fmtr_device_items {
  size_t struct_size;
  const int64_t* items;      /* [offsets[R]] in the device's memory                                              */
  int32_t are_rows;          /* 0: keys; 1: rows of the catalogue, as a nearest-neighbour search gives them      */
  int32_t results_on_device; /* 1: the results' pointers are of the device's memory, too                         */
  int32_t wait_for_stream;   /* 1: the items are what was sent to this stream will make of them (a cudaStream_t) */
  void* stream;
} fmtr_device_items;

/* As fmtr_rank; batch->items is not read, and unknown_items must be FMTR_UNKNOWN_SKIP: items that the catalogue does not have
 * (-1, say) are never listed. items_out [R, k], may be NULL: the listed items, -1 beyond counts[r]. */
FMTR_API fmtr_status fmtr_rank_device_items(fmtr_session* session, const fmtr_batch* batch, const fmtr_device_items* items,
                                            uint64_t k, uint64_t* positions, int64_t* items_out, float* fused,
                                            float* scores, uint64_t* counts);

/* As fmtr_request_output; values are in the device's memory. */
FMTR_API fmtr_status fmtr_request_output_device(fmtr_session* session, const fmtr_batch* batch, const char* name,
                                                float* values, uint64_t capacity);

/* ---- features: raw values in, what a model reads out ------------------------------------------------------------------
 * The feature program of a bundle, immutable, shared by threads: no function below but the first two and the JSON ones
 * allocates once it is warm, and none takes a lock. What each feature means, and that it is the same for tables and for one
 * row, is in docs/features.md. */

typedef struct fmtr_features fmtr_features;

typedef enum fmtr_type {
  FMTR_NULL = 0,
  FMTR_INT = 1,    /* true and false are 1 and 0 */
  FMTR_FLOAT = 2,  /* NaN is null                */
  FMTR_TEXT = 3,   /* UTF-8                      */
  FMTR_INTS = 4,
  FMTR_FLOATS = 5,
  FMTR_TEXTS = 6
} fmtr_type;

typedef struct fmtr_text {
  const char* data; /* UTF-8, no end mark needed */
  uint64_t size;    /* bytes                     */
} fmtr_text;

typedef struct fmtr_value {
  uint32_t column; /* of fmtr_features_column */
  uint32_t type;   /* fmtr_type               */
  uint64_t count;  /* elements of a list, bytes of a text */
  union {
    int64_t whole;
    double number;
    const char* text;
    const int64_t* ints;
    const double* floats;
    const fmtr_text* texts;
  } of;
  const uint8_t* valid; /* of a list: 0 where an element is null; NULL: none is */
} fmtr_value;

/* The program of a bundle that has features.json, of version 2. */
FMTR_API fmtr_status fmtr_features_load(const char* directory, fmtr_features** features);

/* An array as safetensors name it: dtype "I64", "I32", "F64", "F32" or "U8". */
typedef struct fmtr_array {
  const char* name;
  const char* dtype;
  uint64_t rank;
  const uint64_t* shape;
  const void* data;
} fmtr_array;

/* The same from the text of features.json and its arrays, which are copied. */
FMTR_API fmtr_status fmtr_features_create(const char* json, uint64_t json_size, const fmtr_array* arrays, uint64_t n_arrays,
                                          fmtr_features** features);
FMTR_API void fmtr_features_free(fmtr_features* features); /* NULL is fine */

/* JSON text: for each domain its packed widths and raw columns with the types that each accepts (none: it may be given,
 * but nothing reads it). */
FMTR_API fmtr_status fmtr_features_describe(const fmtr_features* features, char** json);
FMTR_API fmtr_status fmtr_features_column(const fmtr_features* features, fmtr_domain domain, const char* name,
                                          uint32_t* column);
FMTR_API uint64_t fmtr_features_width(const fmtr_features* features, fmtr_domain domain, fmtr_kind kind);

/* One row of a domain: ids [width(FMTR_IDS)] and dense [width(FMTR_DENSE)] from n values. base_ids and base_dense, NULL or a
 * packed row (a stored user, say), give the features whose columns are not among the values; without them these are null.
 * Of a value of the wrong type, and of what a feature's rules refuse: FMTR_ERROR_SCHEMA, and the row is not to be used. */
FMTR_API fmtr_status fmtr_features_encode(const fmtr_features* features, fmtr_domain domain, const fmtr_value* values,
                                          uint64_t n, const int32_t* base_ids, const float* base_dense, int32_t* ids,
                                          float* dense);

/* JSON text: for each domain and feature what was encoded so far: rows, nulls (lists and texts without an element or word
 * among them), values, and of categories unseen ones, of scaled numbers those beyond the fitted range. Of lists and texts,
 * values are all elements that are not null; of the gaps of a history, each event is a row. */
FMTR_API fmtr_status fmtr_features_counts(const fmtr_features* features, char** json);

#ifdef __cplusplus
}
#endif
#endif /* FASTMTR_H */
