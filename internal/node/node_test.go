package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/kubeapi"
	"kuorum/internal/pki"
)

// TestSystemObjects: server-side apply refuses an object whose path or kind
// says something else than its body.
func TestSystemObjects(t *testing.T) {
	kinds := map[string]string{"clusterroles": "ClusterRole", "clusterrolebindings": "ClusterRoleBinding"}
	roles, seen := map[string]bool{}, map[string]bool{}
	var bound []string
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	usual := len(systemObjects(spec))
	spec.Spec.Kubernetes.Scheduler.LeaderElection.ResourceNamespace = "elsewhere"
	if own := len(systemObjects(spec)); own != usual+2 {
		t.Errorf("%d objects, and %d with a lease where upstream lets the scheduler use none: want a role and a binding", usual, own)
	}
	for _, o := range systemObjects(spec) {
		var body struct {
			APIVersion, Kind string
			Metadata         struct{ Name string }
			RoleRef          struct{ Kind, Name string }
			Subjects         []struct{ Kind, Name string }
			Rules            []struct{ Verbs, Resources, NonResourceURLs []string }
		}
		if err := json.Unmarshal([]byte(o.body), &body); err != nil {
			t.Fatalf("%s: %v", o.path, err)
		}
		parts := strings.Split(strings.TrimPrefix(o.path, "/apis/"), "/")
		if len(parts) != 4 || parts[0]+"/"+parts[1] != body.APIVersion || kinds[parts[2]] != body.Kind || parts[3] != body.Metadata.Name {
			t.Errorf("%s leads to %s %s %s", o.path, body.APIVersion, body.Kind, body.Metadata.Name)
		}
		if seen[o.path] {
			t.Errorf("%s is there twice", o.path)
		}
		seen[o.path] = true
		for _, rule := range body.Rules {
			if text := strings.Join(append(rule.Verbs, rule.Resources...), " "); strings.Contains(text, "*") || strings.Contains(text, "secrets") {
				t.Errorf("%s may do too much: %s", body.Metadata.Name, text)
			}
		}
		if body.Kind == "ClusterRole" {
			roles[body.Metadata.Name] = true
			continue
		}
		if len(body.Subjects) != 1 || body.Subjects[0].Kind != "User" || body.Subjects[0].Name == "" || body.RoleRef.Kind != "ClusterRole" {
			t.Errorf("%s binds %+v to %+v", o.path, body.RoleRef, body.Subjects)
		}
		bound = append(bound, body.RoleRef.Name)
	}
	for _, name := range bound {
		if !roles[name] && name != "system:kubelet-api-admin" {
			t.Errorf("nobody makes the role %s", name)
		}
	}
	if !json.Valid([]byte(roleLabel)) {
		t.Error("the role's label is no JSON")
	}
}

// testAPI is a client of an API server in front of handler.
func testAPI(t *testing.T, handler http.HandlerFunc) (*httptest.Server, apiClient) {
	t.Helper()
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.New("demo", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	files, err := set.NodeFiles(spec, spec.Spec.Nodes[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pems := map[string][]byte{}
	for _, f := range files {
		pems[f.Path] = f.Data
	}
	pair, err := tls.X509KeyPair(pems["pki/apiserver.crt"], pems["pki/apiserver.key"])
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	t.Cleanup(server.Close)
	admin, err := set.AdminPair(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config, err := pki.Kubeconfig(server.URL, "kuorum-demo", admin, set.Cluster.Pair().Cert)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "agent.conf")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kubeapi.New(path, askAPI)
	if err != nil {
		t.Fatal(err)
	}
	return server, apiClient{client}
}

func TestPatch(t *testing.T) {
	var got *http.Request
	code := http.StatusOK
	server, c := testAPI(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.WithoutCancel(r.Context()))
		w.WriteHeader(code)
		_, _ = w.Write([]byte(`{"message":"because"}`)) // the client may have gone
	})
	o := systemObjects(&cluster.Spec{})[0]
	if err := c.apply(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got.Method != http.MethodPatch || got.URL.Path != o.path || got.URL.Query().Get("fieldManager") != "kuorum" || got.Header.Get("Content-Type") != "application/apply-patch+yaml" {
		t.Errorf("got %s %s, %v", got.Method, got.URL, got.Header)
	}
	if err := c.labelServer(t.Context(), "cp1"); err != nil || got.URL.Path != "/api/v1/nodes/cp1" {
		t.Errorf("got %s, %v", got.URL, err)
	}
	if err := c.deleteNode(t.Context(), "cp1"); err != nil || got.Method != http.MethodDelete || got.URL.Path != "/api/v1/nodes/cp1" {
		t.Errorf("got %s %s, %v", got.Method, got.URL, err)
	}
	code = http.StatusNotFound
	if err := c.deleteNode(t.Context(), "cp1"); err != nil {
		t.Errorf("one that is gone already: %v", err)
	}
	code = http.StatusForbidden
	if err := c.apply(t.Context(), o); err == nil || !strings.Contains(err.Error(), "403 Forbidden") || !strings.Contains(err.Error(), "because") {
		t.Errorf("a refusal: %v", err)
	}
	if _, ok := errors.AsType[*cluster.Problem](c.deleteNode(t.Context(), "cp1")); !ok {
		t.Error("a node that cannot be deleted is no problem")
	}
	server.Close()
	if err := c.apply(t.Context(), o); err == nil {
		t.Error("a server that is gone has applied it")
	}
}

func TestWriteCNI(t *testing.T) {
	dir := t.TempDir()
	subnet, out := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "net.d", "10-kuorum.conflist")
	write := func(path, data string) {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeCNI(subnet, out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before flannel has written: %v", err)
	}
	write(subnet, "FLANNEL_SUBNET=10.244.1.1/24\n")
	if err := writeCNI(subnet, out); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a file must be told: %v", err)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("something was written")
	}
	write(subnet, "FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n")
	if err := writeCNI(subnet, out); err != nil {
		t.Fatal(err)
	}
	want := component.CNI(netip.MustParsePrefix("10.244.1.0/24"), 1450)
	first, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeCNI(subnet, out); err != nil {
		t.Fatal(err)
	}
	if second, err := os.Stat(out); err != nil || !os.SameFile(first, second) {
		t.Errorf("what was right was written again: %v", err)
	}
	write(out, "somebody else's")
	if err := writeCNI(subnet, out); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %s, %v", got, err)
	}
}

// testAgent has what retry needs.
func testAgent(log *bytes.Buffer) *Agent {
	return &Agent{options: Options{Log: slog.New(slog.NewTextHandler(log, nil))}}
}

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		begin, tries := time.Now(), []time.Duration(nil)
		testAgent(&log).retry(t.Context(), "test", func(context.Context) error {
			tries = append(tries, time.Since(begin))
			switch n := len(tries); {
			case n < 6:
				return errors.New("first reason")
			case n < 9:
				return errors.New("second reason")
			}
			return nil
		})
		// 250 ms, doubled up to 5 s.
		if len(tries) != 9 || tries[1] != 250*time.Millisecond || tries[2] != 750*time.Millisecond || tries[8]-tries[7] != 5*time.Second {
			t.Errorf("tried at %v", tries)
		}
		text := log.String()
		if strings.Count(text, "first reason") != 1 || strings.Count(text, "second reason") != 1 || strings.Count(text, "msg=done") != 1 {
			t.Errorf("each reason is told once:\n%s", text)
		}
	})
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		begin := time.Now()
		testAgent(&log).retry(ctx, "test", func(context.Context) error { return errors.New("never") })
		if took := time.Since(begin); took != 12*time.Second {
			t.Errorf("it ended after %v", took)
		}
		if strings.Contains(log.String(), "done") {
			t.Errorf("it says it is done:\n%s", log.String())
		}
	})
}

func TestLink(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "link")
	for _, target := range []string{"/old/bundle", "/old/bundle", "/new/bundle"} {
		if err := link(target, path); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(path); err != nil || got != target {
			t.Errorf("it leads to %q, %v, want %q", got, err, target)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := link("/ours", file); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "theirs" {
		t.Errorf("a file of others became %q, %v", got, err)
	}
}

func TestWriteFilesAndProcesses(t *testing.T) {
	dir := t.TempDir()
	c := component.Component{
		Name: "x", Dirs: []string{filepath.Join(dir, "data")},
		Files: []component.File{{Path: filepath.Join(dir, "etc", "x.yaml"), Data: []byte("a: 1\n"), Mode: 0o600}},
	}
	if err := writeFiles(c); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(c.Dirs[0])
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its directory: %v, %v", info, err)
	}
	if got, err := os.ReadFile(c.Files[0].Path); err != nil || string(got) != "a: 1\n" {
		t.Errorf("its file: %q, %v", got, err)
	}
	spec, err := cluster.New("one", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := component.Machine{Spec: spec, Node: spec.Spec.Nodes[0], Bundle: "/b", Kuorum: "/k"}
	components := component.For(m)
	list := processes(m, components)
	for i, p := range list {
		if p.Name != components[i].Name || p.Log != "/var/log/kuorum/"+p.Name+".log" || p.Digest != components[i].Digest() || p.Ready == nil {
			t.Errorf("got %+v", p)
		}
	}
	if len(list) != len(components) {
		t.Errorf("%d of %d components run", len(list), len(components))
	}
}

// TestNoNode: an agent on a machine that is no node says so and waits, until
// it is told to stop. /etc/kuorum does not exist where tests run.
func TestNoNode(t *testing.T) {
	if _, err := os.Stat(component.EtcDir); err == nil {
		t.Fatalf("%s exists: tests must not run on a node", component.EtcDir)
	}
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		stop, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- Run(t.Context(), Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Stop: stop})
		}()
		<-time.After(time.Minute)
		close(stop)
		if err := <-ended; err != nil {
			t.Errorf("it ended with %v", err)
		}
		if n := strings.Count(log.String(), "waits for kuorum join"); n != 1 {
			t.Errorf("it said so %d times:\n%s", n, log.String())
		}
	})
}
