package node

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/membership"
	"kuorum/internal/pki"
)

// TestMembersOnly asks over TLS as an agent has it: a caller without
// certificate is told why and reaches no handler.
func TestMembersOnly(t *testing.T) {
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files, err := set.NodeFiles(spec, spec.Spec.Nodes[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var own, kubelet pki.Pair
	for _, f := range files {
		switch f.Path {
		case "pki/agent.crt":
			own.Cert = f.Data
		case "pki/agent.key":
			own.Key = f.Data
		case "pki/apiserver-kubelet-client.crt":
			kubelet.Cert = f.Data
		case "pki/apiserver-kubelet-client.key":
			kubelet.Key = f.Data
		}
	}
	admin, err := set.AgentClientPair("somebody", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var reached atomic.Int32
	server := httptest.NewUnstartedServer(membersOnly(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached.Add(1)
		writeJSON(w, true)
	})))
	if server.TLS, err = pki.ServerTLS(set.Agents.Pair().Cert, own); err != nil {
		t.Fatal(err)
	}
	server.StartTLS()
	t.Cleanup(server.Close)

	for _, test := range []struct {
		name string
		pair *pki.Pair
		code int
	}{
		{"stranger", nil, http.StatusUnauthorized},
		{"kubernetes", &kubelet, http.StatusUnauthorized},
		{"agent", &own, http.StatusOK},
		{"admin", &admin, http.StatusOK},
	} {
		t.Run(test.name, func(t *testing.T) {
			config, err := pki.ClientTLS(set.Agents.Pair().Cert, own, "")
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = nil
			if test.pair != nil {
				pair, err := tls.X509KeyPair(test.pair.Cert, test.pair.Key)
				if err != nil {
					t.Fatal(err)
				}
				config.Certificates = []tls.Certificate{pair}
			}
			transport := &http.Transport{TLSClientConfig: config}
			defer transport.CloseIdleConnections()
			before := reached.Load()
			resp, err := (&http.Client{Transport: transport}).Get(server.URL + agent.StatusPath)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			refused := test.code == http.StatusUnauthorized
			if resp.StatusCode != test.code || (reached.Load() == before) != refused || resp.Close != refused {
				t.Errorf("answered %s, %d calls reached the handler", resp.Status, reached.Load()-before)
			}
			if refused && !strings.Contains(string(body), "certificate of this cluster") {
				t.Errorf("a stranger is told %q", body)
			}
		})
	}
}

// TestStrangersSeeNoRoute: which paths there are is none of their business.
func TestStrangersSeeNoRoute(t *testing.T) {
	api := membersOnly((&Agent{}).membersAPI())
	for _, path := range []string{"/", "/v1/health", agent.StatusPath, "/v1/other"} {
		answer := httptest.NewRecorder()
		api.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		if answer.Code != http.StatusUnauthorized {
			t.Errorf("%s answers a stranger with %d", path, answer.Code)
		}
	}
}

// TestQuestionsAreNoChange: who asks again and again what a removal would do waits for
// the turn of the very node that is asked.
func TestQuestionsAreNoChange(t *testing.T) {
	t.Parallel()
	a := &Agent{}
	var during []int32
	h := a.counted(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { during = append(during, a.serves()) }))
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), method, membership.RemovePath, nil))
	}
	if want := []int32{0, 1}; !slices.Equal(during, want) || a.serves() != 0 {
		t.Errorf("serves %v changes, and %d afterwards, want %v", during, a.serves(), want)
	}
}
