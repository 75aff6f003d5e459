package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kuorum/internal/pki"
)

// object is one API object that the system itself needs, with the path it
// lives at: server-side apply needs no discovery then.
type object struct {
	path string
	body string
}

// systemObjects are the permissions of the system's own parts that upstream's
// defaults do not cover. Applying them again changes nothing, so every server
// may do it at any time.
func systemObjects() []object {
	const roles, bindings = "/apis/rbac.authorization.k8s.io/v1/clusterroles/", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/"
	return []object{
		{bindings + "kuorum:apiserver-kubelet", binding("kuorum:apiserver-kubelet", "system:kubelet-api-admin", "kube-apiserver-kubelet-client")},
		{roles + "kuorum:coredns", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"kuorum:coredns"},"rules":[
			{"apiGroups":[""],"resources":["endpoints","services","pods","namespaces"],"verbs":["list","watch"]},
			{"apiGroups":["discovery.k8s.io"],"resources":["endpointslices"],"verbs":["list","watch"]}]}`},
		{bindings + "kuorum:coredns", binding("kuorum:coredns", "kuorum:coredns", pki.UserCoreDNS)},
		{roles + "kuorum:flannel", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"kuorum:flannel"},"rules":[
			{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch"]},
			{"apiGroups":[""],"resources":["nodes/status"],"verbs":["patch"]}]}`},
		{bindings + "kuorum:flannel", binding("kuorum:flannel", "kuorum:flannel", pki.UserFlannel)},
	}
}

func binding(name, role, user string) string {
	return fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":%q},
		"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":%q},
		"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":%q}]}`, name, role, user)
}

// roleLabel marks a server as kubectl and the books know it; a kubelet may
// not give itself this label (NodeRestriction).
const roleLabel = `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`

// errNotFound says that an object does not exist.
var errNotFound = errors.New("not found")

// apiClient talks to one API server.
type apiClient struct {
	http *http.Client
	host string
}

func newAPIClient(kubeconfig string) (*apiClient, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", kubeconfig, err)
	}
	config.Timeout = 10 * time.Second
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", kubeconfig, err)
	}
	return &apiClient{http: client, host: config.Host}, nil
}

// apply creates or updates o by server-side apply (KEP-555), taking over
// fields that somebody else has changed: these objects are the system's.
func (c *apiClient) apply(ctx context.Context, o object) error {
	return c.patch(ctx, o.path+"?fieldManager=kuorum&force=true", "application/apply-patch+yaml", o.body)
}

func (c *apiClient) labelServer(ctx context.Context, name string) error {
	return c.patch(ctx, "/api/v1/nodes/"+name, "application/merge-patch+json", roleLabel)
}

func (c *apiClient) patch(ctx context.Context, path, kind, body string) error {
	_, err := c.do(ctx, http.MethodPatch, path, kind, body)
	return err
}

func (c *apiClient) get(ctx context.Context, path string) ([]byte, error) {
	return c.do(ctx, http.MethodGet, path, "", "")
}

func (c *apiClient) do(ctx context.Context, method, path, kind, body string) ([]byte, error) {
	failed := func(err error) error { return fmt.Errorf("cannot %s %s: %w", strings.ToLower(method), path, err) }
	req, err := http.NewRequestWithContext(ctx, method, c.host+path, bytes.NewBufferString(body))
	if err != nil {
		return nil, failed(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, failed(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode == http.StatusNotFound {
		err = errNotFound
	}
	if err == nil && resp.StatusCode >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s: %.200s", resp.Status, answer)
	}
	if err != nil {
		return nil, failed(err)
	}
	return answer, nil
}
