package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// TestRefusal: a problem is the same problem after its way to the caller, but
// for the wrapped error, whose words are kept.
func TestRefusal(t *testing.T) {
	cause := errors.New("because")
	for _, test := range []struct {
		err  error
		want cluster.Problem
		code int
	}{
		{&cluster.Problem{What: "a", Why: "b", Do: "c", Exit: cluster.ExitRefused}, cluster.Problem{What: "a", Why: "b", Do: "c", Exit: cluster.ExitRefused}, http.StatusConflict},
		{&cluster.Problem{What: "a", Exit: cluster.ExitUsage}, cluster.Problem{What: "a", Exit: cluster.ExitUsage}, http.StatusBadRequest},
		{&cluster.Problem{What: "a", Exit: cluster.ExitNoQuorum, Err: cause}, cluster.Problem{What: "a", Why: "because", Exit: cluster.ExitNoQuorum}, http.StatusServiceUnavailable},
		{&cluster.Problem{What: "a", Why: "b", Err: cause}, cluster.Problem{What: "a", Why: "b\nbecause", Exit: cluster.ExitError}, http.StatusInternalServerError},
		{&cluster.Problem{What: "a", Exit: cluster.ExitTimeout}, cluster.Problem{What: "a", Exit: cluster.ExitTimeout}, http.StatusInternalServerError},
		{fmt.Errorf("outer: %w", &cluster.Problem{What: "a", Exit: cluster.ExitRefused}), cluster.Problem{What: "a", Exit: cluster.ExitRefused}, http.StatusConflict},
		{errors.Join(cause, &cluster.Problem{What: "a", Exit: cluster.ExitRefused}), cluster.Problem{What: "a", Exit: cluster.ExitRefused}, http.StatusConflict},
		{cause, cluster.Problem{What: "because", Exit: cluster.ExitError}, http.StatusInternalServerError},
	} {
		refusal, code := Refuse(test.err)
		data, err := json.Marshal(refusal)
		if err != nil {
			t.Fatal(err)
		}
		var read Refusal
		if err := json.Unmarshal(data, &read); err != nil {
			t.Fatal(err)
		}
		problem, ok := errors.AsType[*cluster.Problem](read.problem())
		if !ok || code != test.code {
			t.Errorf("%v: %d, want %d", test.err, code, test.code)
			continue
		}
		if diff := cmp.Diff(test.want, *problem); diff != "" {
			t.Errorf("%v:\n%s", test.err, diff)
		}
	}
}
