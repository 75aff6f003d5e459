package fault

import (
	"encoding/json"
	"net/http"

	"kuorum/internal/cluster"
)

// Path is where a keeper is served: POST makes a fault of the Order in the
// value "order", GET lists all, DELETE heals those of the values "id".
const Path = "/v1/faults"

// Handle serves the keeper below mux. answer writes what a request has led to.
func (k *Keeper) Handle(mux *http.ServeMux, answer func(w http.ResponseWriter, value any, err error)) {
	mux.HandleFunc("POST "+Path, func(w http.ResponseWriter, r *http.Request) {
		var order Order
		var made Fault
		err := json.Unmarshal([]byte(r.URL.Query().Get("order")), &order)
		if err != nil {
			err = &cluster.Problem{What: "cannot read the order", Err: err, Exit: cluster.ExitUsage}
		} else {
			made, err = k.Make(r.Context(), order)
		}
		answer(w, made, err)
	})
	mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, _ *http.Request) { answer(w, k.List(), nil) })
	mux.HandleFunc("DELETE "+Path, func(w http.ResponseWriter, r *http.Request) {
		healed, err := k.Heal(r.Context(), r.URL.Query()["id"]...)
		answer(w, healed, err)
	})
}
