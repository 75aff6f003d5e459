package node

import (
	"context"
	"fmt"

	"kuorum/internal/kubeapi"
	"kuorum/internal/pki"
)

// nodesPath is where the API has its nodes.
const nodesPath = "/api/v1/nodes/"

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

// apiClient is what an agent asks its own API server.
type apiClient struct{ *kubeapi.Client }

// apply creates or updates o by server-side apply (KEP-555), taking over
// fields that somebody else has changed: these objects are the system's.
func (c apiClient) apply(ctx context.Context, o object) error {
	return c.Patch(ctx, o.path+"?fieldManager=kuorum&force=true", kubeapi.Apply, o.body)
}

func (c apiClient) labelServer(ctx context.Context, name string) error {
	return c.Patch(ctx, nodesPath+name, kubeapi.MergePatch, roleLabel)
}
